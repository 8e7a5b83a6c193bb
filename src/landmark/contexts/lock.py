"""The lock of a context's one writer. The system releases it when the process ends, however it ends."""

import errno
import fcntl
import os
from pathlib import Path

from landmark.contexts import disk
from landmark.contexts.disk import OpenFile
from landmark.contexts.manifest import LOCK

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


def take_lock(folder: Path) -> OpenFile:
    """Locks the context in `folder` until the file is closed.

    Raises ValueError if somebody else holds the lock, or if nothing may be written there.
    """
    path = folder / LOCK
    try:
        file = disk.open_or_create(path)
    except OSError as error:
        if error.errno not in _NOT_OURS:
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
    try:
        fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = bytes(file.read(file.size)).decode() or "not told yet"
        raise ValueError(
            f"{folder} is being written by another writer (process {holder}): wait until it closes, or fork the context"
        ) from error
    if not file.path.exists() or not os.path.samestat(file.path.stat(), os.fstat(file.descriptor)):
        raise ValueError(f"{folder} was deleted by another process just now: give another context")
    disk.truncate(file, 0)
    disk.write(file, str(os.getpid()).encode(), 0)
