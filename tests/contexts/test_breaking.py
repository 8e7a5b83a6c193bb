"""A few of the trials of `python -m benchmarks reliability`: kills of commands, flipped bits, hostile folders."""

import random

import children
import flipped_answers
import hostile
import killed_commands
import pytest
from flips import REGIONS

KILLS = 3  # of each command, at random calls to the disk


@pytest.fixture(scope="module")
def loaded_model(folder):
    with children.loaded(folder) as model:
        yield model


@pytest.mark.parametrize("name", killed_commands.NAMES)
def test_a_killed_command_goes_on(name, loaded_model, tmp_path):
    with killed_commands.many_commits():
        trial = killed_commands.Trial(name, loaded_model, tmp_path / "trial", words=20)
        for at in random.Random(name).sample(range(1, trial.undisturbed.disk_calls + 1), KILLS):
            assert trial.kill(at=at).wrong is None, f"killed before call {at}"


def test_no_flipped_bit_is_read_silently(loaded_model, tmp_path):
    trial, draw = flipped_answers.Trial(loaded_model, tmp_path / "trial"), random.Random(0)
    for region in REGIONS:
        for _ in range(2):
            flip = trial.flip(region, draw)
            assert flip.held, flip


@pytest.fixture(scope="module")
def attacks(loaded_model, tmp_path_factory):
    return hostile.Trial(loaded_model, tmp_path_factory.mktemp("hostile") / "trial")


CASES = (
    "lock: hard link to a file",
    "segments: link to what was there",
    "segments/000001.text: link to what was there",
    "manifest.json: FIFO",
    "manifest: segments is {}",
    "manifest: deep",
)


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_harms_nothing(case, attacks):
    for name in hostile.COMMANDS:
        attack = attacks.attack(case, name)
        assert attack.wrong is None, attack
