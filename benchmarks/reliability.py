"""Reliability of contexts on disk: kills, hostile folders, flipped bits, forks, refused calls, power cuts, readers.

Every result is compared with content that follows from numbers, or with an undisturbed run. docs/reliability.md has
what was found.
"""

import errno
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# The trials are those of the tests, which run a few where this runs many.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "contexts"))

import flipped_answers
import forking
import hostile
import killed_commands
from children import loaded
from faults import LOSSES, Session, calls_of, content, cut_twice, refuse_a_call
from flips import REGIONS, committed_byte, flipped, read_all
from killing import kill_once, read_meanwhile
from made import HEADER, LAYOUT, add, commit, short_segments
from tiny_reader import save

from benchmarks import trials
from benchmarks.options import ReliabilityOptions
from benchmarks.trials import Row
from landmark.cli.output import tokens_read as progress_bar
from landmark.contexts.disk import Damage
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create

Part = Callable[[Path, ReliabilityOptions, random.Random], Iterator[Row]]


def run(options: ReliabilityOptions, names: list[str]) -> Iterator[Row]:
    """One row for each trial of these parts. Each part draws by itself: alone it gives what it gives among others."""
    return trials.run(
        options, names, lambda name, root: PARTS[name](root, options, random.Random(f"{options.seed} {name}"))
    )


# With a tiny model.


def _commands(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """Kills each command before each call to the disk, and at random instants; one row for each command."""
    with loaded(save(root)) as model, killed_commands.many_commits():
        for turn, name in enumerate(killed_commands.NAMES):
            trial = killed_commands.Trial(name, model, root / name)
            usual, commands = trial.undisturbed, len(killed_commands.NAMES)
            instants = options.kills // commands + (turn < options.kills % commands)
            failures = []
            with progress_bar(f"kills of {name}", usual.disk_calls + instants) as progress:
                for at in range(1, usual.disk_calls + 1):
                    if wrong := trial.kill(at=at).wrong:
                        failures.append(f"before call {at}: {wrong}")
                    progress(1)
                for after, killed in islice(_killed_in_time(trial, draw), instants):
                    if killed.wrong:
                        failures.append(f"after {after:.4f} s: {killed.wrong}")
                    progress(1)
            figures = {"kills_before_a_call": usual.disk_calls, "kills_at_random_instants": instants}
            yield {"command": name, **figures, "failures": failures}


def _killed_in_time(
    trial: killed_commands.Trial, draw: random.Random
) -> Iterator[tuple[float, killed_commands.Killed]]:
    """Kills at random instants that came before the end of the command."""
    while True:
        after = draw.uniform(0, trial.undisturbed.seconds)
        killed = trial.kill(after=after)
        if killed.first.code == -signal.SIGKILL:
            yield after, killed


def _answers(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """Bits flipped in each region, met by opening, asking and reading on; one row for each region."""
    trial = flipped_answers.Trial(_loaded_model(root), root / "trial")
    for region in REGIONS:
        with progress_bar(f"flips of {region}", options.flips) as progress:
            found = [_moved(progress, trial.flip(region, draw)) for _ in range(options.flips)]
        counts = Counter(flip.outcome for flip in found)
        failures = [str(flip) for flip in found if not flip.held]
        figures = {"error_names_the_file": counts["named"], "byte_not_used": counts["unused"]}
        yield {"region": region, "flips": options.flips, **figures, "failures": failures}


def _forks(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """Random sequences with forks in memory, compared bit for bit with fresh contexts."""
    model, failures = _loaded_model(root), []
    with progress_bar("sequences with forks", options.forks) as progress:
        for number in range(options.forks):
            seed = options.seed * 10**6 + number
            folder = root / str(seed)
            folder.mkdir()
            try:
                forking.Trial(seed, model, folder).run()
            except Exception as error:
                failures.append(f"seed {seed}: {type(error).__name__}: {error}")
            shutil.rmtree(folder)
            progress(1)
    yield {"sequences": options.forks, "steps": forking.STEPS, "failures": failures}


def _hostile(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """Commands in hostile folders; one row for each command."""
    with loaded(save(root)) as model:
        trial = hostile.Trial(model, root / "trial")
        cases = trial.draw(options.hostile, draw)
        for name in hostile.COMMANDS:
            with progress_bar(f"{name} in hostile folders", len(cases)) as progress:
                tried = [_moved(progress, trial.attack(case, name)) for case in cases]
            found = [attack for attack in tried if attack is not None]
            codes = Counter(attack.ran.code for attack in found)
            failures = [f"{attack.case}: {attack.wrong}" for attack in found if attack.wrong]
            failures += [f"{attack.case}: {attack.ran.cpu_seconds:.1f} s" for attack in found if attack.slow]
            figures = {"folders": len(found), "done": codes[0], "refused": codes[2], "found_damage": codes[1]}
            figures["slowest_s"] = round(max(attack.ran.seconds for attack in found), 3)
            figures["slowest_cpu_s"] = round(max(attack.ran.cpu_seconds for attack in found), 3)
            yield {"command": name, **figures, "failures": failures}


def _loaded_model(root: Path) -> Any:
    """A tiny model that was saved in `root`, loaded."""
    with loaded(save(root)) as model:
        return model


def _moved(progress: Callable[[int], object], found: Any) -> Any:
    progress(1)
    return found


# With content that follows from numbers. These stop at the first result that is not what was committed.


def _kills(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """Kills a writer after up to 0.2 seconds, again and again in one folder."""
    number = options.kills
    results = [kill_once(root, draw.uniform(0, 0.2)) for _ in range(number)]
    yield {"kills": number, "commits_before_them": sum(commits for commits, _ in results)}


def _readers(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """Snapshots taken beside a writer."""
    snapshots, commits = read_meanwhile(root, options.seconds)
    yield {"snapshots": snapshots, "of_different_commits": commits}


def _flips(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """Bits flipped, found by verify with the right file, and met by reading."""
    path, number = root / "one", options.flips
    with short_segments(4), create(path, HEADER, LAYOUT) as writer:
        now = content("one", 0)
        for generation in range(1, 7):
            then = content("one", generation)
            commit(writer, add(writer, now, then.documents[len(now.documents) :], then.blocks[len(now.blocks) :]))
            now = then
    found = met = 0
    for region in REGIONS:
        for _ in range(number):
            file, offset = committed_byte(open_reader(path), region, draw)
            with flipped(file, offset, draw.randrange(8)):
                found += [damage.file for damage in verify(path)] == [file]
                try:
                    read_all(path)
                except Damage:
                    met += 1
    yield {"flips": number * len(REGIONS), "named_by_verify": found, "regions": len(REGIONS), "met_by_reading": met}


def _power_cuts(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """A power cut at every call of a session, with each kind of loss, and another while it goes on."""
    calls, cuts = _calls_of_a_session(root), 0
    for lost in LOSSES:
        for at in range(1, calls + 1):
            folder = root / f"{lost}{at}"
            folder.mkdir()
            cuts += sum(cut_twice(Session(folder), folder, at, draw.randint(1, 60), lost))
            shutil.rmtree(folder)
    yield {"calls": calls, "kinds_of_loss": len(LOSSES), "cuts": cuts}


def _refused_calls(root: Path, options: ReliabilityOptions, draw: random.Random) -> Iterator[Row]:
    """ENOSPC and EIO at every call of a session."""
    calls = _calls_of_a_session(root)
    for number in (errno.ENOSPC, errno.EIO):
        for at in range(1, calls + 1):
            folder = root / f"{number}at{at}"
            folder.mkdir()
            refuse_a_call(Session(folder), folder, at, number)
            shutil.rmtree(folder)
    yield {"calls": calls, "refused": 2 * calls}


def _calls_of_a_session(root: Path) -> int:
    """Calls of a session without any fault."""
    folder = root / "whole"
    folder.mkdir()
    return calls_of(Session(folder), folder)


PARTS: dict[str, Part] = {
    "commands": _commands,
    "answers": _answers,
    "forks": _forks,
    "hostile": _hostile,
    "kills": _kills,
    "readers": _readers,
    "flips": _flips,
    "power_cuts": _power_cuts,
    "refused_calls": _refused_calls,
}
