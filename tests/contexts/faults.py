"""A disk that fails or loses power at any one call, and a session on it that goes on from whatever it finds."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from made import HEADER, LAYOUT, Content, add, check, commit, short_segments

from landmark.contexts import disk
from landmark.contexts.disk import OpenFile
from landmark.contexts.folder import delete, fork
from landmark.contexts.manifest import has_manifest
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer

CALLS = (
    "create open_or_create write truncate sync sync_folder make_folder link replace remove remove_folder".split()  # noqa: SIM905
)
# What a power cut takes of names and of bytes that were not brought to the device. "some": of any name and any file's
# bytes at random, since the system may write them in any order.
Lost = Literal["nothing", "everything", "bytes", "names", "some"]
LOSSES: tuple[Lost, ...] = ("nothing", "everything", "bytes", "names", "some")

Names = dict[Path, dict[str, int | None]]  # in each folder: the inode of a file, None for a folder


class PowerCut(BaseException):
    """The process ends here."""


class FaultyDisk:
    """Stands before the functions of `landmark.contexts.disk`, for all that happens below `root`.

    Counts their calls from 1 and lets one of them fail, with an `OSError` or as a power cut. A write that fails has
    written half. Nothing is really synced: what was, is remembered, and `restart` rebuilds the folder from it.
    """

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root = root
        self.calls = 0
        self.last = ""  # the name of the call before the one that failed, or of the last
        self._fail_at: int | None = None
        self._fault: BaseException = PowerCut()
        self._draw = random.Random(f"{root.name} {seed}")
        self._held: dict[int, OpenFile] = {}  # an inode that is held cannot be given to another file
        self._bytes: dict[int, bytes] = {}  # of inodes, on the device
        self._names: Names = {}  # on the device
        self._everything_is_on_the_device()

    @contextmanager
    def failing(self, at: int | None, fault: BaseException | None = None) -> Iterator[None]:
        """Counts calls, and raises `fault` in call number `at`; a power cut by default."""
        self.calls, self._fail_at, self._fault = 0, at, fault or PowerCut()
        usual = {name: getattr(disk, name) for name in CALLS}
        for name, function in usual.items():
            setattr(disk, name, self._watched(name, function))
        try:
            yield
        finally:
            for name, function in usual.items():
                setattr(disk, name, function)

    def restart(self, lost: Lost) -> None:
        """The folder as it is found after a power cut."""
        names = self._names_left(lost)
        inodes = {inode for entries in names.values() for inode in entries.values() if inode is not None}
        content = {}
        for inode in inodes:
            on_device = self._draw.random() < 0.5 if lost == "some" else lost in ("everything", "bytes")
            content[inode] = self._bytes.get(inode, b"") if on_device else _content(self._held[inode])
        shutil.rmtree(self.root)
        self._rebuild(self.root, names, content, {})
        self._held.clear()
        self._everything_is_on_the_device()

    def _names_left(self, lost: Lost) -> Names:
        if lost in ("everything", "names"):
            return self._names
        now = self._names_now()
        if lost != "some":
            return now
        left: Names = {}
        for folder in self._names.keys() | now.keys():
            both = [self._names.get(folder, {}), now.get(folder, {})]
            chosen = {name: self._draw.choice(both) for name in sorted(both[0].keys() | both[1].keys())}
            left[folder] = {name: entries[name] for name, entries in chosen.items() if name in entries}
        return left

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self._fail_at:
                if name == "write":
                    file, data, offset = arguments
                    function(file, data[: len(data) // 2], offset)
                raise self._fault
            self.last = name
            if name == "sync":
                self._bytes[_inode(arguments[0])] = _content(arguments[0])
            elif name == "sync_folder":
                self._names[arguments[0].path] = self._entries(arguments[0].path)
            else:
                result = function(*arguments)
                if isinstance(result, OpenFile):
                    self._hold(result.path)
                return result

        return call

    def _everything_is_on_the_device(self) -> None:
        self._names = self._names_now()
        self._bytes = {inode: _content(file) for inode, file in self._held.items()}

    def _names_now(self) -> Names:
        folders = [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]
        return {folder: self._entries(folder) for folder in folders}

    def _entries(self, folder: Path) -> dict[str, int | None]:
        return {path.name: None if path.is_dir() else self._hold(path) for path in folder.iterdir()}

    def _hold(self, path: Path) -> int:
        file = OpenFile(path, os.open(path, os.O_RDONLY))
        self._held.setdefault(_inode(file), file)
        return _inode(file)

    def _rebuild(self, folder: Path, names: Names, content: dict[int, bytes], made: dict[int, Path]) -> None:
        folder.mkdir()
        for name, inode in names.get(folder, {}).items():
            path = folder / name
            if inode is None:
                self._rebuild(path, names, content, made)
            elif inode in made:
                os.link(made[inode], path)
            else:
                path.write_bytes(content[inode])
                made[inode] = path


def _inode(file: OpenFile) -> int:
    return os.fstat(file.descriptor).st_ino


def _content(file: OpenFile) -> bytes:
    return bytes(file.read(file.size))


class Session:
    """Makes, grows, forks and deletes contexts below a folder, and knows what must be there.

    `run` may be broken off anywhere and be called again: it goes on with what it finds. Commit number n of a context
    always holds the same.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sure: dict[str, int] = {}  # the last commit of each context that returned
        self._given_up: set[str] = set()  # contexts that are being deleted

    def run(self) -> None:
        """From whatever there is to the end."""
        with short_segments(6):  # the fork takes over a segment that is not full
            if "trunk" not in self._given_up:
                self._make("trunk", lambda: create(self.root / "trunk", HEADER, LAYOUT).close(), 0)
                self._grow("trunk", 3)
                self._make("branch", lambda: fork(self.root / "trunk", self.root / "branch"), 3)
                self._grow("trunk", 5)
            self._grow("branch", 5)
            self._given_up.add("trunk")
            if (self.root / "trunk").exists():
                delete(self.root / "trunk")

    def check(self) -> None:
        """Raises AssertionError unless all is there that was committed, whole, and nothing else."""
        for name in ("trunk", "branch"):
            path = self.root / name
            if not has_manifest(path):
                assert name not in self._sure or name in self._given_up
                continue
            snapshot = open_reader(path)
            generation, sure = snapshot.manifest.generation, self._sure.get(name)
            if sure is not None:
                assert sure <= generation <= sure + 1
            check(snapshot, content(name, generation))
            self._sure[name] = generation
            assert verify(path) == []

    def _make(self, name: str, make: Callable[[], None], generation: int) -> None:
        path = self.root / name
        if has_manifest(path):
            return
        if path.exists():
            delete(path)
        make()
        self._sure[name] = generation

    def _grow(self, name: str, until: int) -> None:
        with open_writer(self.root / name) as writer:
            while (generation := writer.manifest.generation) < until:
                now, then = content(name, generation), content(name, generation + 1)
                new = then.documents[len(now.documents) :], then.blocks[len(now.blocks) :]
                commit(writer, add(writer, now, *new))
                self._sure[name] = generation + 1


def content(name: str, generation: int) -> Content:
    """What commit number `generation` of a context holds; a branch leaves the trunk after the third."""
    held = Content()
    for number in range(generation):
        own = 1000 if name == "branch" and number >= 3 else 0
        documents = tuple(own + number * 10 + step for step in range((number + 2) % 3))
        blocks = tuple(own + number * 100 + step for step in range((number * 2 + 3) % 5))
        held = Content(held.documents + documents, held.blocks + blocks, number + 1)
    return held


class Interrupted(Protocol):
    """Changes below a folder that may be broken off anywhere: `run` goes on with what it finds."""

    def run(self) -> None: ...

    def check(self) -> None:
        """Raises AssertionError unless what must be there is there."""
        ...


def calls_of(session: Interrupted, root: Path) -> int:
    """Lets a session in `root` run to its end, checks what it left; how often it called the disk."""
    faulty = FaultyDisk(root)
    with faulty.failing(None):
        session.run()
    session.check()
    return faulty.calls


def cut_twice(session: Interrupted, root: Path, at: int, again: int, lost: Lost) -> list[bool]:
    """Two power cuts, the second while the session goes on after the first; checks what each left, and the end.

    Returns which of them came: a session that has fewer calls ends before.
    """
    faulty, came = FaultyDisk(root), []
    for call in (at, again):
        try:
            with faulty.failing(call):
                session.run()
            came.append(False)
        except PowerCut:
            came.append(True)
        faulty.restart(lost)
        session.check()
    session.run()
    session.check()
    return came


def refuse_a_call(session: Interrupted, root: Path, at: int, number: int) -> None:
    """Lets call `at` of a session in `root` raise an OSError; checks what it left, goes on to the end, checks again."""
    # An error while cleaning up after an earlier error is not raised.
    with FaultyDisk(root).failing(at, OSError(number, "refused")), suppress(OSError):
        session.run()
    session.check()
    session.run()
    session.check()
