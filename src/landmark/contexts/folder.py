"""The folder of a context: creation, deletion, listing, forks."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from landmark.contexts import disk
from landmark.contexts.disk import Folder, Place
from landmark.contexts.lock import WriterLock, take_lock
from landmark.contexts.manifest import (
    KEYS,
    KINDS,
    LOCK,
    MANIFEST,
    NEW_KEYS,
    NEW_MANIFEST,
    SEGMENTS,
    Manifest,
    has_manifest,
    publish,
    segment_name,
)
from landmark.contexts.snapshot import Snapshot, open_reader, with_state

_STATE = re.compile(r"state-[0-9]+\.safetensors")
_SEGMENT_FILE = re.compile(rf"([0-9]+)\.({'|'.join(KINDS)})")


# Names in a context's folder.


def stray_files(folder: Folder, manifest: Manifest) -> list[Place]:
    """Files of crashed commits: those with a context's names that the manifest does not list."""
    states = [name for name in folder.names() if _STATE.fullmatch(name) and name != manifest.state_name]
    found = [folder / name for name in (*states, NEW_MANIFEST, NEW_KEYS)]
    segments = disk.open_inner(folder / SEGMENTS)
    for name in segments.names():
        if (match := _SEGMENT_FILE.fullmatch(name)) and int(match[1]) > len(manifest.segments):
            found.append(segments / name)
    return [place for place in found if place.stat() is not None and not place.is_folder()]


def is_unused(path: Path) -> bool:
    """Whether a context can be made at `path`: there is nothing, an empty folder, or what a killed creation left."""
    try:
        return not os.path.lexists(path) or _is_unused(disk.open_folder(path))
    except OSError:
        return False


def _is_unused(folder: Folder) -> bool:
    """Whether a folder is empty, or as a kill before the first manifest leaves it.

    The files of segments then have other names, in the context of which a fork was being made: what is removed here is
    nowhere the last copy.
    """
    names = folder.names()
    if MANIFEST in names or _foreign(folder):
        return False
    if SEGMENTS not in names:
        return True
    if not (folder / SEGMENTS).is_folder():
        return False
    segments = disk.open_inner(folder / SEGMENTS)
    found = [(segments / name).stat() for name in segments.names()]
    return all(file is not None and file.st_nlink > 1 for file in found)


def _foreign(folder: Folder) -> list[Path]:
    """What is in the folder and has no name that a context uses, or is a folder where a context has none.

    Without a manifest beside them, files of common names count only with the content that a context's have.
    """
    names = (MANIFEST, NEW_MANIFEST, KEYS, NEW_KEYS, LOCK, SEGMENTS)
    known = [name for name in folder.names() if name in names or _STATE.fullmatch(name)]
    foreign = [folder / name for name in folder.names() if name not in known]
    foreign += [folder / name for name in known if name != SEGMENTS and (folder / name).is_folder()]
    if (folder / SEGMENTS).is_folder():
        segments = disk.open_inner(folder / SEGMENTS)
        places = [segments / name for name in segments.names()]
        foreign += [place for place in places if not _SEGMENT_FILE.fullmatch(place.name) or place.is_folder()]
    if MANIFEST not in known:
        foreign += [folder / name for name, begins in _CONTENT.items() if name in known and not begins(folder / name)]
    return [place.path for place in foreign]


def _beginning(place: Place) -> bytes:
    """Some bytes; those of no context for what cannot be read."""
    try:
        file = disk.open_file(place)
        return bytes(file.read(min(file.size, 64)))
    except (OSError, ValueError):
        return b"?"


_CONTENT: dict[str, Callable[[Place], bool]] = {
    LOCK: lambda place: re.fullmatch(rb"[0-9]{0,20}", _beginning(place)) is not None,
    NEW_MANIFEST: lambda place: b'{"crc32": "'.startswith(_beginning(place)[:11]),
}


def _place_of(path: Path) -> Place:
    """The name of a folder, in the folder that it is in, which a link may lead to."""
    path = path.resolve() if path.name in ("", "..") else path
    return disk.open_folder(path.parent) / path.name


# Creation and deletion.


@contextmanager
def creating(path: str | Path, mode: int = 0o777) -> Iterator[WriterLock]:
    """Wraps the creation of a context in `path` and gives its lock. If the block fails, nothing of the context stays.

    The folder gets no more permissions than `mode`. Raises ValueError if there is something at `path` already, except
    what a crash in here left, and if `path` lies in a context.
    """
    path = Path(path)
    check_outside(path)
    place = _place_of(path)
    if not os.path.lexists(path):
        disk.make_folder(place, mode)
    if not is_unused(path):
        raise ValueError(f"{path} exists: give a new folder, or delete the context in it first")
    folder = disk.open_folder(path)
    with ExitStack() as held:
        lock = take_lock(folder)
        held.callback(lock.close)
        if not _is_unused(folder):
            raise ValueError(f"{path} was made by another process just now: give a new folder")
        try:
            _remove_files(folder)
            disk.make_folder(folder / SEGMENTS, folder.mode)
            yield lock
            disk.sync_folder(place.folder)
        except (OSError, ValueError):
            with suppress(OSError):  # the first error is the one to report
                _clear(folder, place)
            raise
        held.pop_all()


def check_outside(path: Path) -> None:
    """Raises ValueError if `path` lies in a context, where only the context's own files may be."""
    for parent in path.absolute().parent.resolve(), *path.absolute().parent.resolve().parents:
        if has_manifest(parent):
            raise ValueError(f"{path} lies in the context {parent}: give a place outside of it")


def delete(path: str | Path) -> None:
    """Deletes the context in `path`, or what a crash left of making or deleting one. Forks of it stay whole.

    A damaged context is deleted too. Raises ValueError, and deletes nothing, if there is no context, if `path` is a
    link, if the folder holds other files too, or if a writer has the context open.
    """
    path = Path(path)
    check_deletable(path)
    place = _place_of(path)
    folder = disk.open_inner(place)
    lock_file = folder / LOCK
    if lock_file.stat() is not None and not lock_file.is_file():
        disk.remove(lock_file)  # no writer can hold it
    lock = take_lock(folder)
    try:
        _clear(folder, place)
    finally:
        lock.close()


def check_deletable(path: Path) -> None:
    """Raises ValueError if `path` cannot be deleted as a context."""
    refusal = f"{path} cannot be deleted as a context"
    if path.is_symlink():
        raise ValueError(f"{refusal}: it is a link; give the folder that it leads to")
    if not path.is_dir():
        raise ValueError(f"{refusal}: it is no folder with a manifest")
    folder = disk.open_folder(path)
    foreign = _foreign(folder)
    if foreign and MANIFEST not in folder.names():
        raise ValueError(f"{refusal}: it is not a context, since it has no {MANIFEST}")
    if foreign:
        raise ValueError(f"{refusal}: {foreign[0]} is not part of one")
    segments = folder / SEGMENTS
    grown = segments.is_folder() and disk.open_inner(segments).names()
    if MANIFEST in folder.names() and not has_manifest(folder) and not grown:
        raise ValueError(f"{refusal}: {path / MANIFEST} is not the manifest of one")


def _clear(folder: Folder, place: Place) -> None:
    """Removes the manifest first: from then on there is no context, only remains that can be removed again.

    Another's file that came meanwhile stays, and the folder with it: an OSError.
    """
    if (folder / MANIFEST).stat() is not None:
        disk.remove(folder / MANIFEST)
        disk.sync_folder(folder)
    _remove_files(folder)
    disk.remove(folder / LOCK)
    disk.remove_folder(place)
    disk.sync_folder(place.folder)


def _remove_files(folder: Folder) -> None:
    """Removes all files of a context but its lock, and its folder of segments."""
    if (folder / SEGMENTS).is_folder():
        segments = disk.open_inner(folder / SEGMENTS)
        for name in segments.names():
            if _SEGMENT_FILE.fullmatch(name):
                disk.remove(segments / name)
        disk.remove_folder(folder / SEGMENTS)
    for name in folder.names():
        if name in (MANIFEST, NEW_MANIFEST, KEYS, NEW_KEYS, SEGMENTS) or _STATE.fullmatch(name):
            disk.remove(folder / name)


# What is in it.


def facts(path: str | Path, snapshot: Snapshot) -> dict[str, Any]:
    """Counts and sizes of the context in `path`, and its header, as JSON values.

    `tokens_not_read` are those of documents that were added and that the model has not read yet.
    `shared_bytes` lie in segments that a fork took over, and may be on disk only once for several contexts.
    """
    manifest = snapshot.manifest
    shared = [entry for entry in manifest.segments if not entry.owned]
    _, state = snapshot.state()
    tokens_read = state["tokens"][0] if "tokens" in state else 0
    return {
        "path": str(path),
        "generation": manifest.generation,
        "documents": len(snapshot.documents()),
        "tokens": manifest.token_count,
        "tokens_read": tokens_read,
        "tokens_not_read": manifest.token_count - tokens_read,
        "text_bytes": sum(entry.text.bytes for entry in manifest.segments),
        "blocks": manifest.blocks,
        "segments": len(manifest.segments),
        "bytes": manifest.committed_bytes,
        "shared_bytes": sum(sum(entry.sizes(manifest.layout).values()) for entry in shared),
        **manifest.layout.kept,
        "header": manifest.header,
    }


# Forks on disk: another context that begins as this one and shares its files.


def fork(path: str | Path, to: str | Path) -> None:
    """Makes in `to` a context that is what `path` is now. Both may grow and be deleted, whatever the other does.

    No block is copied: `to` has hard links to the same files and adds to none of them. A writer may have `path` open.
    `to` gets no more permissions than the folder of `path`. Raises ValueError if `path` is no sound context, if `to`
    exists or lies in a context, or if the two folders cannot share files.
    """
    source = open_reader(path).folder
    with creating(to, source.mode) as lock:
        target = lock.folder
        manifest, _ = with_state(source, lambda state: _hard_link(state, target / state.name))
        # A power cut could take a new manifest back; its writer would then cut files that the fork counts on.
        disk.sync_folder(source)
        shared, own = disk.open_inner(source / SEGMENTS), disk.open_inner(target / SEGMENTS)
        for number, entry in enumerate(manifest.segments, start=1):
            for name in (segment_name(number, kind) for kind in entry.sizes(manifest.layout)):
                _hard_link(shared / name, own / name)
        with suppress(OSError):  # derived data: a fork without it is whole
            disk.link(source / KEYS, target / KEYS)
        disk.sync_folder(own)
        publish(target, replace(manifest, segments=tuple(replace(entry, owned=False) for entry in manifest.segments)))
    lock.close()


def _hard_link(source: Place, target: Place) -> None:
    try:
        disk.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
            raise
        raise ValueError(
            f"{target.path} cannot share the bytes of {source.path} ({error.strerror}): fork to a folder of the same "
            f"file system, or export the context"
        ) from error
