"""What was committed survives: calls that fail, power cuts, killed writers, readers beside a writer."""

import errno
import random
from contextlib import suppress
from itertools import product

import pytest
from faults import LOSSES, FaultyDisk, PowerCut, Session, calls_of, cut_twice, refuse_a_call
from killing import kill_once, read_meanwhile
from made import HEADER, LAYOUT, Content, add, check, commit

from landmark.contexts.folder import delete, fork
from landmark.contexts.manifest import has_manifest
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer

# Every call is tried by benchmarks/reliability.py; here every 23rd, and with another start for each kind of fault.
STEP = 23

COMMITS = {1: Content((1,), (1, 2), 1), 2: Content((1, 2), (1, 2, 3, 4), 2)}


def session_in(root):
    root.mkdir()
    return Session(root)


@pytest.mark.parametrize("number", range(len(LOSSES)), ids=LOSSES)
def test_power_cut(tmp_path, number):
    total = calls_of(session_in(tmp_path / "whole"), tmp_path / "whole")
    assert total > 150
    for at in range(1 + number, total + 1, STEP):
        root = tmp_path / str(at)
        first, _ = cut_twice(session_in(root), root, at, again=3 + at * 7 % 60, lost=LOSSES[number])
        assert first


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_refused_call(tmp_path, number):
    total = calls_of(session_in(tmp_path / "whole"), tmp_path / "whole")
    for at in range(1 + number % STEP, total + 1, STEP):
        root = tmp_path / str(at)
        refuse_a_call(session_in(root), root, at, number)


def killed_in_the_second_commit(root, at, seed):
    """A disk with a context whose writer's process was ended in call `at`; None if there are not so many calls."""
    root.mkdir()
    with create(root / "trunk", HEADER, LAYOUT) as writer:
        commit(writer, add(writer, Content(), (1,), (1, 2)))
    faulty = FaultyDisk(root, seed)
    try:
        with faulty.failing(at), open_writer(root / "trunk") as writer:
            commit(writer, add(writer, COMMITS[1], (2,), (3, 4)))
    except PowerCut:
        return faulty
    return None


def the_call_after_a_rename(root):
    """Its number in the second commit."""
    for at in range(2, 100):
        if killed_in_the_second_commit(root / str(at), at, 0).last == "replace":
            return at
    raise AssertionError("a commit renames its manifest")


@pytest.mark.parametrize("meanwhile", ["nothing", "open_writer", "fork"])
def test_a_new_manifest_that_may_be_taken_back(tmp_path, meanwhile):
    """A process is killed right after the rename, another takes up what it sees, and then comes a power cut.

    What that takes differs from trial to trial.
    """
    (tmp_path / "search").mkdir()
    at = the_call_after_a_rename(tmp_path / "search")
    found = set()
    for seed in range(16):
        root = tmp_path / str(seed)
        faulty = killed_in_the_second_commit(root, at, seed)
        with faulty.failing(None):
            if meanwhile == "open_writer":
                open_writer(root / "trunk").close()
            elif meanwhile == "fork":
                fork(root / "trunk", root / "branch")
        faulty.restart("some" if seed else "everything")
        with open_writer(root / "trunk") as writer:
            found.add(generation := writer.manifest.generation)
            check(writer, COMMITS[generation])
            commit(writer, add(writer, COMMITS[generation], (5,), (6, 7, 8)))
        assert verify(root / "trunk") == []
        if meanwhile == "fork":
            check(open_reader(root / "branch"), COMMITS[2])
            assert verify(root / "branch") == []
    assert found == ({1, 2} if meanwhile == "nothing" else {2})


def test_a_deletion_can_be_finished(tmp_path):
    """Whatever a power cut takes of a deletion: the context is there and whole, or what is left can be deleted."""
    for at, seed in product(range(1, 14), range(6)):
        root = tmp_path / f"{at} {seed}"
        root.mkdir()
        create(root / "trunk", HEADER, LAYOUT).close()
        with open_writer(root / "trunk") as writer:
            held = commit(writer, add(writer, Content(), (1,), (1, 2)))
        faulty = FaultyDisk(root, seed)
        with faulty.failing(at), suppress(PowerCut):
            delete(root / "trunk")
        faulty.restart("some")
        if has_manifest(root / "trunk"):
            check(open_reader(root / "trunk"), held)
        if (root / "trunk").exists():
            delete(root / "trunk")
        assert not list(root.iterdir())


# Processes: for longer where the machine is slow.


def test_killed_writers_lose_nothing_that_was_committed(tmp_path):
    draw, kills, commits = random.Random(0), 0, 0
    while kills < 12 or commits <= 12:
        assert kills < 120, "writers do not come to commit anything"
        commits += kill_once(tmp_path, draw.uniform(0, 0.1) * (1 + kills // 12))[0]
        kills += 1


def test_every_snapshot_is_a_commit(tmp_path):
    snapshots = commits = 0
    for turn in range(8):
        folder = tmp_path / str(turn)
        folder.mkdir()
        more = read_meanwhile(folder, 0.5 * 2**turn)
        snapshots, commits = snapshots + more[0], max(commits, more[1])
        if snapshots > 5 and commits > 3:
            return
    raise AssertionError(f"{snapshots} snapshots of at most {commits} commits in a turn")
