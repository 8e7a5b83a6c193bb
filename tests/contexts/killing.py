"""A writer in a process of its own, to be killed or to be read from while it writes."""

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from faults import content
from made import HEADER, LAYOUT, add, check, commit, short_segments

from landmark.contexts.folder import delete, fork
from landmark.contexts.manifest import has_manifest
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer

_COMMITS = 30  # then the context is deleted, and another one is made in its place


def write_for_ever(root: Path, report: Callable[[int], object]) -> None:
    """Makes, grows and forks the context `root/trunk`, round after round; reports the number of every commit."""
    trunk, branch = root / "trunk", root / "branch"
    while True:
        if not has_manifest(trunk):
            if trunk.exists():
                delete(trunk)
            create(trunk, HEADER, LAYOUT).close()
        with open_writer(trunk) as writer:
            report(writer.manifest.generation)
            while writer.manifest.generation < _COMMITS:
                _grow(writer)
                report(writer.manifest.generation)
                if writer.manifest.generation % 7 == 0:
                    if branch.exists():
                        delete(branch)
                    fork(trunk, branch)
        report(0)
        delete(trunk)


def one_commit_more(root: Path) -> None:
    """Goes on with what a kill left, as the next process would."""
    for path in (root / "trunk", root / "branch"):
        if has_manifest(path):
            with open_writer(path) as writer:
                _grow(writer)


def check_all(root: Path, sure: int) -> int:
    """Raises AssertionError unless what was committed is there, whole, and commit `sure` is in it; the trunk's commit.

    0 is sure of nothing: it stands for a context that may just be made or deleted.
    """
    found = 0
    for path in (root / "trunk", root / "branch"):
        if has_manifest(path):
            snapshot = open_reader(path)
            check(snapshot, content("trunk", snapshot.manifest.generation))
            assert verify(path) == []
            if path.name == "trunk":
                found = snapshot.manifest.generation
    assert not sure or sure <= found <= sure + 1, f"commit {sure} was done, and {found} was found"
    return found


def start(write: Callable[[Callable[[int], object]], None]) -> tuple[int, int]:
    """A process that runs `write(report)`; its id, and the pipe with the numbers that it reports, a byte each."""
    source, sink = os.pipe()
    process = os.fork()
    if not process:
        try:
            write(lambda number: os.write(sink, bytes([number])))
        finally:
            os._exit(1)
    os.close(sink)
    return process, source


def stop(process: int, source: int) -> bytes:
    """Kills the process; the numbers that it reported."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with os.fdopen(source, "rb") as reported:
        return reported.read()


def kill_once(root: Path, seconds: float) -> tuple[int, int]:
    """Kills a writer after some time, checks what it left and goes on; how many commits were done, and the last."""
    with short_segments(5):
        process, source = start(lambda report: write_for_ever(root, report))
        time.sleep(seconds)
        reported = stop(process, source)
        last = check_all(root, reported[-1] if reported else 0)
        one_commit_more(root)
        check_all(root, 0)
    return sum(after == before + 1 for before, after in pairwise(reported)), last


def read_meanwhile(root: Path, seconds: float) -> tuple[int, int]:
    """Opens and checks snapshots while another process writes; how many, and of how many commits."""
    with short_segments(5):
        process, source = start(lambda report: _grow_for_ever(root, report))
        os.read(source, 1)
        seen, until = [], time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                snapshot = open_reader(root / "trunk")
                check(snapshot, content("trunk", snapshot.manifest.generation))
                seen.append(snapshot.manifest.generation)
        finally:
            reported = stop(process, source)
        assert seen == sorted(seen), "a later snapshot was an earlier commit"
        check_all(root, reported[-1] if reported else 0)
    return len(seen), len(set(seen))


def _grow_for_ever(root: Path, report: Callable[[int], object]) -> None:
    create(root / "trunk", HEADER, LAYOUT).close()
    with open_writer(root / "trunk") as writer:
        while True:
            if writer.manifest.generation < 250:  # a byte each
                _grow(writer)
            report(writer.manifest.generation)


def _grow(writer) -> None:
    now = content("trunk", writer.manifest.generation)
    then = content("trunk", writer.manifest.generation + 1)
    commit(writer, add(writer, now, then.documents[len(now.documents) :], then.blocks[len(now.blocks) :]))
