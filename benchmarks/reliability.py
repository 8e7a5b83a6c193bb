"""What contexts on disk survive: kills, refused calls, power cuts, flipped bits, readers beside a writer.

    python benchmarks/reliability.py [--kills 300] [--flips 200] [--seconds 20] [--folder DIR] [--seed 0]

Kills a writer at random instants; lets every call that changes the disk fail in turn, as an error and as a power cut
with each kind of loss; flips random bits of each region; reads snapshots for a while beside a writer. Every result is
checked against content that follows from numbers. Prints one JSON object, or stops with an AssertionError at the first
thing that is not as it was committed. docs/reliability.md tells what was found.
"""

import argparse
import errno
import json
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

# The trials are the tests' own, of which the tests do few and this does many.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "contexts"))

from faults import LOSSES, FaultyDisk, PowerCut, Session, content, refuse_a_call
from flips import REGIONS, committed_byte, flipped, read_all
from killing import kill_once, read_meanwhile
from made import HEADER, LAYOUT, add, commit, short_segments

from landmark.contexts.disk import Damage
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--flips", type=int, default=200, help="of each region")
    parser.add_argument("--seconds", type=float, default=20.0, help="of reading beside a writer")
    parser.add_argument("--folder", type=Path, help="on the file system to try; the system's temporary one by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    rows: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform(), "seed": options.seed}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        for name, trial in (
            ("kills", lambda place: kills(place, options.kills, draw)),
            ("readers", lambda place: readers(place, options.seconds)),
            ("flips", lambda place: flips(place, options.flips, draw)),
            ("power_cuts", lambda place: power_cuts(place, draw)),
            ("refused_calls", refused_calls),
        ):
            place = root / name
            place.mkdir()
            started = time.perf_counter()
            rows[name] = {**trial(place), "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(rows, indent=1))


def kills(root: Path, number: int, draw: random.Random) -> dict[str, int]:
    """Kills a writer after up to 0.2 seconds, again and again in one folder."""
    results = [kill_once(root, draw.uniform(0, 0.2)) for _ in range(number)]
    return {"kills": number, "commits_before_them": sum(told for told, _ in results)}


def readers(root: Path, seconds: float) -> dict[str, int]:
    """Snapshots taken beside a writer."""
    snapshots, commits = read_meanwhile(root, seconds)
    return {"snapshots": snapshots, "of_different_commits": commits}


def flips(root: Path, number: int, draw: random.Random) -> dict[str, int]:
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
            file, place = committed_byte(open_reader(path), region, draw)
            with flipped(file, place, draw.randrange(8)):
                found += [damage.file for damage in verify(path)] == [file]
                try:
                    read_all(path)
                except Damage:
                    met += 1
    return {"flips": number * len(REGIONS), "named_by_verify": found, "regions": len(REGIONS), "met_by_reading": met}


def power_cuts(root: Path, draw: random.Random) -> dict[str, int]:
    """A power cut at every call of a session, with each kind of loss, and another while it goes on."""
    calls, cuts = calls_of_a_session(root), 0
    for lost in LOSSES:
        for at in range(1, calls + 1):
            place = root / f"{lost}{at}"
            place.mkdir()
            faulty, session = FaultyDisk(place), Session(place)
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
            shutil.rmtree(place)
    return {"calls": calls, "kinds_of_loss": len(LOSSES), "cuts": cuts}


def refused_calls(root: Path) -> dict[str, int]:
    """ENOSPC and EIO at every call of a session."""
    calls = calls_of_a_session(root)
    for number in (errno.ENOSPC, errno.EIO):
        for at in range(1, calls + 1):
            place = root / f"{number}at{at}"
            refuse_a_call(place, at, number)
            shutil.rmtree(place)
    return {"calls": calls, "refused": 2 * calls}


def calls_of_a_session(root: Path) -> int:
    """How many calls a session makes that changes nothing but what it wants to."""
    place = root / "whole"
    place.mkdir()
    faulty, session = FaultyDisk(place), Session(place)
    with faulty.failing(None):
        session.run()
    session.check()
    return faulty.calls


if __name__ == "__main__":
    main()
