"""Files that are whole or absent, what lies in folders, and locks between processes."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def unfinished(path: Path) -> Path:
    """The name of a file or folder while it is being written."""
    return path.with_name(path.name + ".tmp")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write-then-rename: gives the name to write a file or folder under, which becomes `path` at the end.

    Where `path` exists, it is whole. If the block raises, `path` stays as it was. Not synced: after a power cut the
    new content may be lost (`landmark.contexts.disk.publish` is the durable form).
    """
    partial = unfinished(path)
    yield partial
    partial.replace(path)


def files_below(folders: Iterable[Path]) -> list[os.stat_result]:
    """The status of each file below some folders, once if it has several names. Files may go meanwhile."""
    found: dict[tuple[int, int], os.stat_result] = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(parent, name))
                    found[status.st_dev, status.st_ino] = status
    return list(found.values())


def bytes_in(folders: Iterable[Path]) -> int:
    """Bytes of all files below some folders; one file under several names counts once."""
    return sum(file.st_size for file in files_below(folders))


def disk_bytes(file: os.stat_result) -> int:
    """How much of the disk a file takes."""
    return file.st_blocks * 512


def try_lock(descriptor: int) -> bool:
    """Takes the exclusive lock (flock) of an open file; False, without waiting, if another process has it.

    The system releases it when the file is closed and when the process ends, however it ends.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release_lock(descriptor: int) -> None:
    """Gives up the lock of a file that stays open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
