"""Folders that someone made to do harm, and the commands of `landmark` in them: nothing outside may be touched."""

import json
import math
import os
import random
import re
import shutil
import socket
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import TRACEBACK, Ran, command, own_peak, run
from forking import PROMPT
from killed_commands import write_texts

from landmark import Context
from landmark.contexts.manifest import KINDS, LOCK, MANIFEST, NEW_MANIFEST, SEGMENTS

COMMANDS = ("ls", "info", "verify", "ask", "append", "read", "export", "delete")
SECRET = "precious data of the user"
SLOWEST = 1.0  # seconds of computing, so that the machine may do other work
MOST_BYTES = 256 << 20  # of memory, beyond what the process began with

Change = Callable[[Path, Path], object]  # of a context's folder; files elsewhere are those of the victim's folder


# What can take the place of a file.


def _copied(place: Path, victim: Path) -> Path:
    """What was there, out of the context."""
    copy = victim / "copy"
    place.rename(copy)
    return copy


def _socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(place.parent, os.O_RDONLY)  # the name of a socket has at most 100 bytes
        sock.bind(f"/proc/self/fd/{here}/{place.name}")
        os.close(here)


def _folder(place: Path) -> None:
    place.mkdir()
    (place / "inner").write_text("inner")


THINGS: dict[str, Change] = {
    "link to a file": lambda place, victim: place.symlink_to(victim / "file"),
    "link to nothing": lambda place, victim: place.symlink_to(victim / "nothing"),
    "link to a folder": lambda place, victim: place.symlink_to(victim / "folder"),
    "link to a FIFO": lambda place, victim: place.symlink_to(victim / "fifo"),
    "link to /dev/zero": lambda place, victim: place.symlink_to("/dev/zero"),
    "link to itself": lambda place, victim: place.symlink_to(place),
    "hard link to a file": lambda place, victim: place.hardlink_to(victim / "file"),
    "FIFO": lambda place, victim: os.mkfifo(place),
    "socket": lambda place, victim: _socket(place),
    "device": lambda place, victim: os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "folder": lambda place, victim: _folder(place),
    "empty file": lambda place, victim: place.write_bytes(b""),
    "20 GB of nothing": lambda place, victim: _sparse(place),
    "other file": lambda place, victim: place.write_bytes(b"\xff\0{[" * 1000),
}
COPIES: dict[str, Change] = {  # of what was there: its checksums fit
    "link to what was there": lambda place, victim: place.symlink_to(_copied(place, victim)),
    "hard link to what was there": lambda place, victim: place.hardlink_to(_copied(place, victim)),
    "a byte less": lambda place, victim: os.truncate(place, place.stat().st_size - 1),
    "bytes behind it": lambda place, victim: place.write_bytes(place.read_bytes() + b"behind it"),
}


def _sparse(place: Path) -> None:
    place.touch()
    os.truncate(place, 20 << 30)


def _placed(name: str, thing: Change) -> Change:
    def change(path: Path, victim: Path) -> None:
        place = path / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        thing(place, victim)

    return change


def _kept(name: str, thing: Change) -> Change:
    return lambda path, victim: thing(path / name, victim)


def things_in_places(base: Path) -> Iterator[tuple[str, Change]]:
    """Every thing at every name that a context uses."""
    state = next(base.glob("state-*")).name
    files = [MANIFEST, LOCK, state, *(f"{SEGMENTS}/000001.{kind}" for kind in KINDS)]
    more = [NEW_MANIFEST, f"state-{10**6}.safetensors", f"{SEGMENTS}/000002.blocks", f"{SEGMENTS}/000099.text"]
    for name in (*files, *more, SEGMENTS, "foreign", f"{SEGMENTS}/foreign"):
        for what, thing in THINGS.items():
            yield f"{name}: {what}", _placed(name, thing)
    for name in (*files, SEGMENTS):
        for what, thing in COPIES.items():
            if name != SEGMENTS or what == "link to what was there":
                yield f"{name}: {what}", _kept(name, thing)
    for name in ("evil\x1b[31m", "evil\nlandmark: all is well", "\u202eevil"):
        yield f"folder named {name!a}", lambda path, victim, name=name: path.rename(path.with_name(name))
        yield f"foreign file {name!a}", lambda path, victim, name=name: (path / name).touch()


# Manifests with a checksum that fits, and any content.

WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 10**400, 1.5, math.nan, math.inf),
    *("", "x", "float64", "../../../../etc/passwd", "/etc", "\x1b[31m\nall is well", "\ud800"),
    *([], [[]], [1, 2, 3], {}, {"x": 1}),
)
REMOVED = object()


def manifests(base: Path) -> Iterator[tuple[str, Change]]:
    """Every field with every wrong value; files that are huge, deep, no JSON."""
    fields = json.loads((base / MANIFEST).read_bytes())
    del fields["crc32"]
    for keys in _paths(fields):
        for value in (*WRONG, REMOVED):
            shown = "removed" if value is REMOVED else repr(value)[:30]
            yield f"manifest: {'/'.join(map(str, keys))} is {shown}", _written(_changed(fields, keys, value))
    segments = fields["segments"]
    yield "manifest: 100,000 segments", _written(json.dumps(fields | {"segments": segments * 100_000}))
    for name in ("header", "segments", "unknown"):
        yield (
            f"manifest: 200 MB of {name}",
            lambda path, victim, name=name: _written(json.dumps(fields | {name: "A" * (200 << 20)}))(path, victim),
        )
    yield "manifest: deep", _written('{"format": "landmark context", "x": ' + "[" * 200_000 + "]" * 200_000 + "}")
    yield "manifest: 5,000 digits", _written('{"format": "landmark context", "version": ' + "9" * 5000 + "}")
    yield "manifest: a key twice", _written(json.dumps(fields)[:-1] + ', "generation": 10000}')
    yield "manifest: no object", _written('{"format": "landmark context"}, [1, 2')
    yield "manifest: half of it", lambda path, victim: os.truncate(path / MANIFEST, 100)
    yield "manifest: no UTF-8", lambda path, victim: (path / MANIFEST).write_bytes(b'{"format": "landmark context\xff')


def _paths(value: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from _paths(inner, (*before, key))


def _changed(fields: dict[str, Any], keys: tuple[str | int, ...], value: Any) -> str:
    fields = json.loads(json.dumps(fields))
    inner: Any = fields
    for key in keys[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return json.dumps(fields)


def _written(text: str) -> Change:
    """A manifest of this JSON object, and its checksum."""

    def change(path: Path, victim: Path) -> None:
        rest = text.encode()[1:] + b"\n"
        (path / MANIFEST).write_bytes(b'{"crc32": "%08x",\n%s' % (zlib.crc32(rest), rest))

    return change


# Trials.


@dataclass(frozen=True)
class Attack:
    """What a command did in a hostile folder, and what is wrong with it, if anything."""

    case: str
    command: str
    ran: Ran
    wrong: str | None

    @property
    def slow(self) -> bool:
        """Whether it computed for longer than `SLOWEST`; one that waits is killed, and is wrong."""
        return self.ran.cpu_seconds > SLOWEST


class Trial:
    """Runs commands on hostile folders made of one sound context, below `root`."""

    def __init__(self, model: Any, root: Path) -> None:
        self.model, self.root = model, root
        self._scratch, self._world, base = root / "scratch", root / "world", root / "base"
        self._scratch.mkdir(parents=True)
        self._text, waiting = write_texts(root / "texts", 2, 40)
        with Context.create(base, model) as context:
            name = "book\x1b[31m\nlandmark: all is well"
            context.append("it was a calm sea and jim looked at the ships . " * 8, name)
            context.add([(name + " 2", waiting.read_text(encoding="utf-8"))])
        self._base = base
        cases = [list(things_in_places(base)), list(manifests(base))]
        self.cases: dict[str, Change] = dict(case for kind in cases for case in kind)

    def draw(self, number: int, draw: random.Random) -> list[str]:
        """So many cases, as many of things as of manifests; all if there are no more."""
        kinds = [[name for name in self.cases if name.startswith("manifest: ") == kind] for kind in (False, True)]
        half = min(len(kinds[0]), (number + 1) // 2)
        chosen = [*draw.sample(kinds[0], half), *draw.sample(kinds[1], min(len(kinds[1]), number - half))]
        return draw.sample(chosen, len(chosen))

    def attack(self, case: str, name: str) -> Attack | None:
        """One command in a folder of one case; None where this system cannot make it."""
        if not self._make(case):
            return None
        before, (path,) = self._tree(), (self._world / "here").iterdir()
        ran = run(self._command(name, path), self._scratch)
        return Attack(case, name, ran, self._wrong(case, name, ran, before))

    def _make(self, case: str) -> bool:
        shutil.rmtree(self._world, ignore_errors=True)
        victim = self._world / "victim"
        (victim / "folder").mkdir(parents=True)
        (victim / "file").write_text(f"{SECRET}\n" * 50)
        (victim / "folder" / "inner").write_text(SECRET)
        os.mkfifo(victim / "fifo")
        path = self._world / "here" / "evil"
        shutil.copytree(self._base, path)
        with suppress(PermissionError):  # only root makes devices
            self.cases[case](path, victim)
            return True
        return False

    def _command(self, name: str, path: Path) -> Callable[[], int]:
        return {
            "ls": command("contexts", "ls", path.parent),
            "info": command("contexts", "info", path),
            "verify": command("contexts", "verify", path),
            "ask": command("ask", path, PROMPT, "--max-new-tokens", "2"),
            "append": command("append", path, self._text),
            "read": command("read", self._text, "--out", path, "--model", self.model.name_or_path),
            "export": command("contexts", "export", path, "--out", self._world / "out.tar"),
            "delete": command("contexts", "delete", path, "--yes"),
        }[name]

    def _tree(self) -> dict[str, tuple[Any, ...]]:
        """Mode, time of change and content of all that is not in the context."""
        found = {}
        for path in self._world.rglob("*"):
            name, here = str(path.relative_to(self._world)), path.lstat()
            if not name.startswith("here") and name != "out.tar":
                content = path.read_bytes() if stat.S_ISREG(here.st_mode) and here.st_size < 1 << 30 else b""
                found[name] = (oct(here.st_mode), here.st_mtime_ns, here.st_size, content)
        return found

    def _wrong(self, case: str, name: str, ran: Ran, before: dict[str, tuple[Any, ...]]) -> str | None:
        after = self._tree()
        if after != before:
            changed = sorted(file for file in {**before, **after} if before.get(file) != after.get(file))
            return f"touched {', '.join(changed)}"
        shown, lines = ran.out + ran.error, ran.error.strip().splitlines()
        if ran.code == TRACEBACK or ran.code < 0 or "Traceback" in shown:
            return f"exit code {ran.code}: {lines[-1] if lines else ''}"
        if ran.code not in (0, 2) and not (ran.code == 1 and name in ("ls", "verify")):
            return f"exit code {ran.code}"
        if ran.code == 2 and (len(lines) != 1 or not ran.error.startswith("landmark: error: ")):
            return f"{len(lines)} lines of error: {lines[:2]}"
        if escape := re.search(r".{0,40}(\x1b|\u202e|^landmark: all is well)", shown, re.MULTILINE):
            return f"control characters of a name in the output: {escape[0]!a}"
        if ran.peak_bytes > own_peak() + MOST_BYTES:
            return f"took {(ran.peak_bytes - own_peak()) >> 20} MB"
        out = self._world / "out.tar"
        leaked = SECRET in shown or (out.is_file() and SECRET.encode() in out.read_bytes())
        return "copied a file from elsewhere" if leaked and "hard link" not in case else None
