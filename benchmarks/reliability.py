"""Reliability of contexts on disk: kills, refused calls, power cuts, flipped bits, readers beside a writer.

Every result is compared with content that follows from numbers. docs/reliability.md has what was found.
"""

import errno
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# The trials are those of the tests, which run a few where this runs many.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "contexts"))

from faults import LOSSES, FaultyDisk, PowerCut, Session, content, refuse_a_call
from flips import REGIONS, committed_byte, flipped, read_all
from killing import kill_once, read_meanwhile
from made import HEADER, LAYOUT, add, commit, short_segments

from benchmarks.options import ReliabilityOptions
from landmark.contexts.disk import Damage
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create

Row = dict[str, object]


def run(options: ReliabilityOptions) -> Iterator[Row]:
    """One row per trial; raises AssertionError at the first result that is not what was committed."""
    draw = random.Random(options.seed)
    trials: dict[str, Callable[[Path], Row]] = {
        "kills": lambda root: _kills(root, options.kills, draw),
        "readers": lambda root: _readers(root, options.seconds),
        "flips": lambda root: _flips(root, options.flips, draw),
        "power_cuts": lambda root: _power_cuts(root, draw),
        "refused_calls": _refused_calls,
    }
    system = {"python": platform.python_version(), "system": platform.platform(), "seed": options.seed}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, trial in trials.items():
            root = Path(folder, name)
            root.mkdir()
            started = time.perf_counter()
            figures = trial(root)
            yield {"trial": name, **figures, "trial_seconds": round(time.perf_counter() - started, 1), **system}


def _kills(root: Path, number: int, draw: random.Random) -> Row:
    """Kills a writer after up to 0.2 seconds, again and again in one folder."""
    results = [kill_once(root, draw.uniform(0, 0.2)) for _ in range(number)]
    return {"kills": number, "commits_before_them": sum(commits for commits, _ in results)}


def _readers(root: Path, seconds: float) -> Row:
    """Snapshots taken beside a writer."""
    snapshots, commits = read_meanwhile(root, seconds)
    return {"snapshots": snapshots, "of_different_commits": commits}


def _flips(root: Path, number: int, draw: random.Random) -> Row:
    """Bits flipped, found by verify with the right file, and met by reading."""
    path = root / "one"
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
    return {"flips": number * len(REGIONS), "named_by_verify": found, "regions": len(REGIONS), "met_by_reading": met}


def _power_cuts(root: Path, draw: random.Random) -> Row:
    """A power cut at every call of a session, with each kind of loss, and another while it goes on."""
    calls, cuts = _calls_of_a_session(root), 0
    for lost in LOSSES:
        for at in range(1, calls + 1):
            folder = root / f"{lost}{at}"
            folder.mkdir()
            faulty, session = FaultyDisk(folder), Session(folder)
            for cut in (at, draw.randint(1, 60)):
                try:
                    with faulty.failing(cut):
                        session.run()
                except PowerCut:
                    cuts += 1
                    faulty.restart(lost)
                    session.check()
            session.run()
            session.check()
            shutil.rmtree(folder)
    return {"calls": calls, "kinds_of_loss": len(LOSSES), "cuts": cuts}


def _refused_calls(root: Path) -> Row:
    """ENOSPC and EIO at every call of a session."""
    calls = _calls_of_a_session(root)
    for number in (errno.ENOSPC, errno.EIO):
        for at in range(1, calls + 1):
            folder = root / f"{number}at{at}"
            refuse_a_call(folder, at, number)
            shutil.rmtree(folder)
    return {"calls": calls, "refused": 2 * calls}


def _calls_of_a_session(root: Path) -> int:
    """Calls of a session without any fault."""
    folder = root / "whole"
    folder.mkdir()
    faulty, session = FaultyDisk(folder), Session(folder)
    with faulty.failing(None):
        session.run()
    session.check()
    return faulty.calls
