"""The folder of a context: its writer's lock, creation, deletion, listing, forks."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from landmark.contexts import disk
from landmark.contexts.disk import OpenFile
from landmark.contexts.manifest import (
    KINDS,
    LOCK,
    MANIFEST,
    NEW_MANIFEST,
    SEGMENTS,
    Manifest,
    has_manifest,
    publish,
    segment_file,
)
from landmark.contexts.snapshot import open_reader, with_state
from landmark.files import try_lock

_STATE = re.compile(r"state-\d+\.safetensors")
_SEGMENT_FILE = re.compile(rf"(\d+)\.({'|'.join(KINDS)})")


# The lock of a context's one writer.


def take_lock(folder: Path) -> OpenFile:
    """Locks the context in `folder` until the file is closed, or the process ends.

    Raises ValueError if another writer holds the lock, or if nothing may be written there.
    """
    path = folder / LOCK
    try:
        file = disk.open_or_create(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): open the context for reading, "
            f"or fork or export it to a folder that you may change"
        ) from error
    try:
        _hold(file, folder)
    except BaseException:
        file.close()
        raise
    return file


def _hold(file: OpenFile, folder: Path) -> None:
    if not try_lock(file.descriptor):
        holder = bytes(file.read(file.size)).decode() or "not known yet"
        raise ValueError(
            f"{folder} is being written by another writer (process {holder}): wait until it closes, or fork the context"
        )
    if not file.path.exists() or not os.path.samestat(file.path.stat(), os.fstat(file.descriptor)):
        raise ValueError(f"{folder} was deleted by another process just now: give another context")
    disk.truncate(file, 0)
    disk.write(file, str(os.getpid()).encode(), 0)


# Creation and deletion.


@contextmanager
def creating(path: Path) -> Iterator[OpenFile]:
    """Wraps the creation of a context in `path` and gives its lock. If the block fails, nothing of the context stays.

    Raises ValueError if there is something at `path` already, except what a crash in here left.
    """
    if not path.exists():
        disk.make_folder(path)
    elif not path.is_dir() or not _is_unused(path):
        raise ValueError(f"{path} exists: give a new folder, or delete the context in it first")
    lock = take_lock(path)
    if not _is_unused(path):
        lock.close()
        raise ValueError(f"{path} was made by another process just now: give a new folder")
    try:
        if not (path / SEGMENTS).exists():
            disk.make_folder(path / SEGMENTS)
        if (path / NEW_MANIFEST).exists():
            disk.remove(path / NEW_MANIFEST)
        yield lock
        disk.sync_folder(path.parent)
    except (OSError, ValueError):
        with suppress(OSError):  # the first error is the one to report
            _clear(path)
        lock.close()
        raise


def delete(path: str | Path) -> None:
    """Deletes the context in `path`, or what a crash left of making or deleting one. Forks of it stay whole.

    Raises ValueError, and deletes nothing, if there is no context, if the folder holds other files too, or if a writer
    has the context open.
    """
    path = Path(path)
    foreign = _foreign(path) if path.is_dir() else [path]
    if foreign or ((path / MANIFEST).exists() and not has_manifest(path)):
        what = f"{foreign[0]} is not part of one" if path.is_dir() and foreign else "it is no folder with a manifest"
        raise ValueError(f"{path} cannot be deleted as a context: {what}")
    lock = take_lock(path)
    try:
        _clear(path)
    finally:
        lock.close()


def stray_files(path: Path, manifest: Manifest) -> list[Path]:
    """Files of crashed commits: those with a context's names that the manifest does not list."""
    states = [file for file in path.iterdir() if _STATE.fullmatch(file.name) and file.name != manifest.state_name]
    new = [path / NEW_MANIFEST] if (path / NEW_MANIFEST).exists() else []
    segments = [
        file
        for file in (path / SEGMENTS).iterdir()
        if (match := _SEGMENT_FILE.fullmatch(file.name)) and int(match[1]) > len(manifest.segments)
    ]
    return sorted([*states, *new, *segments])


def _clear(path: Path) -> None:
    """Removes the manifest first: from then on there is no context, only remains that can be removed again."""
    if (path / MANIFEST).exists():
        disk.remove(path / MANIFEST)
        disk.sync_folder(path)
    segments = path / SEGMENTS
    if segments.exists():
        for file in sorted(segments.iterdir()):
            disk.remove(file)
        disk.remove_folder(segments)
    for file in sorted(path.iterdir()):
        disk.remove(file)
    disk.remove_folder(path)
    disk.sync_folder(path.parent)


def _is_unused(path: Path) -> bool:
    """Whether a folder is empty, or as a crash before the first manifest leaves it."""
    segments = path / SEGMENTS
    unused = {LOCK, SEGMENTS, NEW_MANIFEST}
    return all(file.name in unused for file in path.iterdir()) and not (segments.exists() and any(segments.iterdir()))


def _foreign(path: Path) -> list[Path]:
    """Files in the folder with names that no context uses."""
    names = (MANIFEST, NEW_MANIFEST, LOCK, SEGMENTS)
    foreign = [file for file in path.iterdir() if file.name not in names and not _STATE.fullmatch(file.name)]
    segments = path / SEGMENTS
    if segments.is_dir():
        foreign += [file for file in segments.iterdir() if not _SEGMENT_FILE.fullmatch(file.name)]
    return foreign


# Listing.


def find(folder: str | Path) -> list[Path]:
    """The contexts in `folder`, damaged ones too, by name; ValueError if it is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that contexts were saved in")
    return sorted(path for path in folder.iterdir() if has_manifest(path))


def info(path: str | Path) -> dict[str, Any]:
    """Counts and sizes of the context in `path`, and its header, as JSON values; raises as `open_reader` does.

    `shared_bytes` lie in segments that a fork took over, and may be on disk only once for several contexts.
    """
    snapshot = open_reader(path)
    manifest = snapshot.manifest
    shared = [entry for entry in manifest.segments if not entry.owned]
    return {
        "path": str(path),
        "generation": manifest.generation,
        "documents": len(snapshot.documents()),
        "tokens": manifest.token_count,
        "text_bytes": sum(entry.text.bytes for entry in manifest.segments),
        "blocks": manifest.blocks,
        "segments": len(manifest.segments),
        "bytes": manifest.committed_bytes,
        "shared_bytes": sum(sum(entry.sizes(manifest.layout).values()) for entry in shared),
        "header": manifest.header,
    }


# Forks on disk: another context that begins as this one and shares its files.


def fork(path: str | Path, to: str | Path) -> None:
    """Makes in `to` a context that is what `path` is now. Both may grow and be deleted, whatever the other does.

    No block is copied: `to` has hard links to the same files and adds to none of them. A writer may have `path` open.
    Raises ValueError if `path` is no sound context, if `to` exists, or if the two folders cannot share files.
    """
    path, to = Path(path), Path(to)
    open_reader(path)
    with creating(to) as lock:
        manifest, _ = with_state(path, lambda state: _hard_link(state, to / state.name))
        # A power cut could take a new manifest back; its writer would then cut files that the fork counts on.
        disk.sync_folder(path)
        for number, entry in enumerate(manifest.segments, start=1):
            for kind in entry.sizes(manifest.layout):
                _hard_link(segment_file(path, number, kind), segment_file(to, number, kind))
        disk.sync_folder(segment_file(to, 1, "blocks").parent)
        publish(to, replace(manifest, segments=tuple(replace(entry, owned=False) for entry in manifest.segments)))
    lock.close()


def _hard_link(source: Path, target: Path) -> None:
    try:
        disk.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
            raise
        raise ValueError(
            f"{target} cannot share the bytes of {source} ({error.strerror}): fork to a folder of the same "
            f"file system, or export the context"
        ) from error
