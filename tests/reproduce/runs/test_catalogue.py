"""The catalogue as a whole: every line has a key of its own, and every comparison finds both of its rows."""

from collections import Counter
from pathlib import Path

import pytest

from reproduce.runs.catalogue import BLOCK_SIZES, experiments
from reproduce.runs.conversion import PEERS, base_stages, conversion_steps
from reproduce.runs.setup import FULL, QUICK, Setup
from reproduce.runs.trainings import Training
from reproduce.tables.claims import comparisons
from reproduce.tables.results import KEY, matches

SETUP = Setup(Path("out"), {}, FULL)


def keys(scale):
    return [
        row.key(experiment.training.corpus, experiment.training.seed, scale.steps)
        for experiment in experiments(scale)
        for row in experiment.rows
    ]


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_no_two_rows_of_the_report_have_the_same_key(scale):
    counted = Counter(tuple(key.get(name) for name in KEY) for key in keys(scale))
    assert [key for key, count in counted.items() if count > 1] == []


def test_every_training_has_a_folder_of_its_own():
    named: dict[str, Training] = {}
    for experiment in experiments(FULL):
        training = experiment.training
        assert named.setdefault(training.name, training) == training
    assert named["books-landmark-seed0"].block_size in BLOCK_SIZES  # the headline is one of those compared


def test_headline_comparisons_come_first_and_have_three_seeds():
    trainings = [experiment.training for experiment in experiments(FULL)]
    first = [(training.corpus, training.attention, training.seed) for training in trainings[:15]]
    assert first[:3] == [("books", attention, 0) for attention in ("landmark", "full", "recurrent")]
    assert {seed for corpus, _, seed in first if corpus == "books"} == {0, 1, 2}


@pytest.mark.parametrize("pair", comparisons(), ids=str)
def test_comparisons_find_their_rows(pair):
    for setting in pair:
        assert len([key for key in keys(FULL) if key["seed"] == 0 and matches(key, setting)]) == 1, setting


def test_controls_are_of_the_models_that_they_are_about():
    rows = {
        (experiment.training.attention, *experiment.training.changes.items()): experiment.of_tables(["controls"]).rows
        for experiment in experiments(QUICK)
        if experiment.of_tables(["controls"]).rows and experiment.training.corpus == "books"
    }
    assert {kind: len(found) for kind, found in rows.items()} == {
        ("landmark",): 10,  # by length, and in two parts of a window, with and without opened blocks
        ("full",): 2,
        ("full", ("window", 64)): 2,
        ("full", ("window", 128)): 2,
        ("landmark", ("gates", False)): 2,
    }
    assert [row.targets for row in rows["full",]] == [(1, 49), (50, 511)]


def test_peers_are_trained_for_as_many_steps_as_base_and_conversion():
    ours = sum(stage.steps for stage in base_stages(SETUP)) + conversion_steps(SETUP)[-1]
    for attention, *_ in PEERS:
        stages = base_stages(SETUP, attention, conversion_steps(SETUP)[-1])
        assert sum(stage.steps for stage in stages) == ours
        assert stages[-1].attention == attention
        assert stages[-1].recall == base_stages(SETUP)[-1].recall
