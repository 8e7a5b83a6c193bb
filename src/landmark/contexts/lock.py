"""The lock of a context's one writer, and the proof that it is still its own."""

import errno
import os
from contextlib import ExitStack

from landmark.contexts import disk
from landmark.contexts.disk import Damage, Folder, OpenFile, Place
from landmark.contexts.manifest import LOCK
from landmark.files import try_lock

_LONGEST_ID = 20  # digits of a process id


class WriterLock:
    """The lock on the context in `folder`, until it is closed or the process ends. Made by `take_lock`."""

    def __init__(self, folder: Folder, file: OpenFile) -> None:
        self.folder = folder
        self._file = file
        self._path = folder.path.absolute()  # the process may change its working directory

    def check(self) -> None:
        """Raises ValueError if another writer may have come: the folder or the lock's file is another one by now."""
        if not self.folder.is_at(self._path):
            raise not_alone(f"{self.folder.path} was moved, replaced or deleted")
        if not (self.folder / LOCK).holds(self._file):
            raise not_alone(f"{(self.folder / LOCK).path} was deleted or replaced")

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()


def not_alone(what: str) -> ValueError:
    """The error of a writer that may not be the only one any more."""
    return ValueError(f"{what} while this writer had the context open: nothing was changed; open the context again")


def take_lock(folder: Folder) -> WriterLock:
    """Locks a context.

    Raises ValueError if another writer holds the lock, if it is no regular file, or if nothing may be written there.
    """
    place = folder / LOCK
    try:
        file = disk.open_or_create(place)
    except FileNotFoundError as error:
        raise _deleted(folder) from error
    except Damage as error:
        raise ValueError(f"{place.path} {error.what}: remove it, or take the context from a copy") from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ValueError(
            f"{place.path} cannot be written ({error.strerror}): open the context for reading, "
            f"or fork or export it to a folder that you may change"
        ) from error
    with ExitStack() as held:
        held.callback(file.close)
        _hold(file, place)
        if file.names > 1:  # in a copy of the folder made of hard links: the lock of the other context too
            disk.remove(place)
            file = disk.create(place)
            held.callback(file.close)
            _hold(file, place)
        disk.truncate(file, 0)
        disk.write(file, str(os.getpid()).encode(), 0)
        held.pop_all()
    return WriterLock(folder, file)


def _hold(file: OpenFile, place: Place) -> None:
    if not try_lock(file.descriptor):
        holder = bytes(file.read(min(file.size, _LONGEST_ID)))
        raise ValueError(
            f"{place.folder.path} is being written by another writer "
            f"(process {holder.decode() if holder.isdigit() else 'not known yet'}): "
            f"wait until it closes, or fork the context"
        )
    if not place.holds(file):
        raise _deleted(place.folder)


def _deleted(folder: Folder) -> ValueError:
    return ValueError(f"{folder.path} was deleted by another process just now: give another context")
