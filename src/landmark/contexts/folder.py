"""The folder of a context: how one comes to be and goes, and what in it is not part of the commit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from landmark.contexts import disk
from landmark.contexts.disk import OpenFile
from landmark.contexts.lock import take_lock
from landmark.contexts.manifest import KINDS, LOCK, MANIFEST, NEW_MANIFEST, SEGMENTS, Manifest, has_manifest

_STATE = re.compile(r"state-\d+\.safetensors")
_SEGMENT_FILE = re.compile(rf"(\d+)\.({'|'.join(KINDS)})")


@contextmanager
def founding(path: Path) -> Iterator[OpenFile]:
    """Around the making of a new context in `path`; gives its lock. If that fails, nothing of it stays.

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
        with suppress(OSError):  # what led here is what the caller must hear of
            _clear(path)
        lock.close()
        raise


def stray_files(path: Path, manifest: Manifest) -> list[Path]:
    """Files of crashed commits: those with a context's names that the manifest does not speak of."""
    states = [file for file in path.iterdir() if _STATE.fullmatch(file.name) and file.name != manifest.state_name]
    new = [path / NEW_MANIFEST] if (path / NEW_MANIFEST).exists() else []
    segments = [
        file
        for file in (path / SEGMENTS).iterdir()
        if (match := _SEGMENT_FILE.fullmatch(file.name)) and int(match[1]) > len(manifest.segments)
    ]
    return sorted([*states, *new, *segments])


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
    """Whether a folder is empty, or as a crash leaves it that came before the manifest of a new context."""
    segments = path / SEGMENTS
    unused = {LOCK, SEGMENTS, NEW_MANIFEST}
    return all(file.name in unused for file in path.iterdir()) and not (segments.exists() and any(segments.iterdir()))


def _foreign(path: Path) -> list[Path]:
    """What is in the folder and bears no name that a context gives."""
    names = (MANIFEST, NEW_MANIFEST, LOCK, SEGMENTS)
    foreign = [file for file in path.iterdir() if file.name not in names and not _STATE.fullmatch(file.name)]
    segments = path / SEGMENTS
    if segments.is_dir():
        foreign += [file for file in segments.iterdir() if not _SEGMENT_FILE.fullmatch(file.name)]
    return foreign
