"""Files of a context: folders held by descriptor, what is opened in them, and the calls that change something.

No name inside a context is followed as a link, so that whoever made the folder cannot point at files elsewhere. Nothing
else in this package opens or writes, so a test that replaces these functions sees every step and can make any of them
fail. Errors name their file, which those of calls on a descriptor do not.
"""

import errno
import mmap
import os
import stat
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

Progress = Callable[[int, int], object]  # called with the bytes done so far, and the bytes in all

# A FIFO is opened without waiting for its other end, and then refused.
_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINK_ERRORS = (errno.ELOOP, errno.EMLINK)  # what systems say for a link under O_NOFOLLOW
_NO_REGULAR_FILE = "is not a regular file"


# For folders that are copies of what lies elsewhere: what gives up a damaged file there, and returns the URL.
copies: dict[Path, Callable[[Path], str]] = {}


class Damage(ValueError):
    """Raised when committed data is missing or corrupt; `verify` collects all of them.

    What is damaged in a copy of what lies at a `url` is given up here: whoever opens that next fetches it again.
    """

    def __init__(self, file: Path, what: str) -> None:
        self.file = file
        self.what = what
        self.url = next((give_up(file) for folder, give_up in [*copies.items()] if folder in file.parents), None)
        remedy = (
            "take the context from a copy, or read the text again"
            if self.url is None
            else f"it was part of a copy of {self.url}, and is deleted: open that again, which fetches it anew"
        )
        super().__init__(f"{file} {what}; {remedy}")


class Folder:
    """A folder held by its descriptor: whatever takes its path later, names in it are those of this one.

    `path` is for messages. Threads may share it. It is closed when nothing refers to it any more.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)

    def __truediv__(self, name: str) -> "Place":
        return Place(self, name)

    @property
    def mode(self) -> int:
        """Permission bits."""
        return stat.S_IMODE(os.fstat(self.descriptor).st_mode) & 0o777

    def names(self) -> list[str]:
        """Names of all that is in it, sorted."""
        with _naming(self.path):
            return sorted(os.listdir(self.descriptor))

    def is_at(self, path: Path) -> bool:
        """Whether `path` leads to this folder."""
        with suppress(OSError):
            return os.path.samestat(os.stat(path), os.fstat(self.descriptor))
        return False


class Place(NamedTuple):
    """A name in a folder, whether there is something of that name or not."""

    folder: Folder
    name: str

    @property
    def path(self) -> Path:
        """For messages."""
        return self.folder.path / self.name

    def stat(self) -> os.stat_result | None:
        """Of what has the name, a link itself; None if nothing has it."""
        with suppress(FileNotFoundError), _naming(self.path):
            return os.stat(self.name, dir_fd=self.folder.descriptor, follow_symlinks=False)
        return None

    def is_folder(self) -> bool:
        """Whether a folder has the name."""
        found = self.stat()
        return found is not None and stat.S_ISDIR(found.st_mode)

    def is_file(self) -> bool:
        """Whether a regular file has the name."""
        found = self.stat()
        return found is not None and stat.S_ISREG(found.st_mode)

    def holds(self, file: "OpenFile | Folder") -> bool:
        """Whether this is the name of an open file or folder."""
        found = self.stat()
        return found is not None and os.path.samestat(found, os.fstat(file.descriptor))


class OpenFile:
    """An open file, closed when nothing refers to it any more; threads may share it. `path` is for messages."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)

    @property
    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self.descriptor).st_size

    @property
    def names(self) -> int:
        """How many names (hard links) it has."""
        return os.fstat(self.descriptor).st_nlink

    @property
    def mode(self) -> int:
        """Permission bits."""
        return stat.S_IMODE(os.fstat(self.descriptor).st_mode) & 0o777

    def read(self, length: int, offset: int = 0) -> bytearray:
        """Exactly `length` bytes from `offset` on; OSError if the file ends before."""
        data = bytearray(length)
        rest = memoryview(data)
        with _naming(self.path):
            while rest:
                done = os.preadv(self.descriptor, [rest], offset)
                if not done:
                    raise OSError(errno.EIO, "the file ends too early: it was cut short")
                rest, offset = rest[done:], offset + done
        return data


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the path into errors of calls that only know a descriptor, or a name in a folder."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


# Opening.


def open_folder(path: str | Path) -> Folder:
    """Opens a folder that the user named, so that a link to one will do; OSError if there is none."""
    return Folder(Path(path), os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def open_inner(place: Place) -> Folder:
    """Opens a folder in a folder; Damage if it is missing, a link or something else."""
    flags = os.O_RDONLY | os.O_DIRECTORY | _CAREFUL
    try:
        with _naming(place.path):
            return Folder(place.path, os.open(place.name, flags, dir_fd=place.folder.descriptor))
    except FileNotFoundError as error:
        raise Damage(place.path, "is missing") from error
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, *_LINK_ERRORS):
            raise
        raise Damage(place.path, "is not a folder of its own") from error


def open_file(place: Place, flags: int = os.O_RDONLY, mode: int = 0o666) -> OpenFile:
    """Opens a file in a folder; if `flags` make it, with no more permissions than `mode` and the folder have.

    Raises OSError if the system does not open it, and Damage for a link or anything else that is no regular file.
    """
    folder = place.folder
    try:
        with _naming(place.path):
            descriptor = os.open(place.name, flags | _CAREFUL, folder.mode & mode & 0o666, dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ENXIO, errno.EOPNOTSUPP, *_LINK_ERRORS):
            raise
        raise Damage(place.path, _NO_REGULAR_FILE) from error
    file = OpenFile(place.path, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise Damage(place.path, _NO_REGULAR_FILE)
    return file


ROOT = 0
OTHERS_READ = 0o644  # mode of files that may be mapped


def mapped(file: OpenFile, size: int) -> mmap.mmap | None:
    """The first `size` bytes of a file, in memory that processes share; pages that are written to become private.

    None for a file that somebody else but root may change: bytes could change after they were checked, and reading
    where a file was cut short ends the process (SIGBUS).
    """
    status = os.fstat(file.descriptor)
    if not size or status.st_uid not in (ROOT, os.geteuid()) or status.st_mode & 0o022:
        return None
    with suppress(OSError):  # a file system that cannot, or too large a file
        return mmap.mmap(file.descriptor, size, access=mmap.ACCESS_COPY)
    return None


# System calls that change something.


def create(place: Place, mode: int = 0o666) -> OpenFile:
    """Makes a new empty file; FileExistsError if there is one."""
    return open_file(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)


def open_or_create(place: Place) -> OpenFile:
    """Opens a file for writing, a new one if there is none."""
    return open_file(place, os.O_RDWR | os.O_CREAT)


def write(file: OpenFile, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    rest = memoryview(data)
    with _naming(file.path):
        while rest:
            done = os.pwrite(file.descriptor, rest, offset)
            rest, offset = rest[done:], offset + done


def truncate(file: OpenFile, length: int) -> None:
    """Cuts a file to `length` bytes."""
    with _naming(file.path):
        os.ftruncate(file.descriptor, length)


def sync(file: OpenFile) -> None:
    """Returns when the file's bytes are on the device."""
    with _naming(file.path):
        os.fsync(file.descriptor)


def sync_folder(folder: Folder) -> None:
    """Returns when the names in a folder are on the device."""
    with _naming(folder.path):
        os.fsync(folder.descriptor)


def make_folder(place: Place, mode: int = 0o777) -> None:
    """Makes a folder; FileExistsError if there is one."""
    with _naming(place.path):
        os.mkdir(place.name, mode, dir_fd=place.folder.descriptor)


def link(source: Place, target: Place) -> None:
    """Gives a file a second name (hard link)."""
    folders = {"src_dir_fd": source.folder.descriptor, "dst_dir_fd": target.folder.descriptor}
    with _naming(source.path):
        os.link(source.name, target.name, **folders, follow_symlinks=False)


def replace(source: Place, target: Place) -> None:
    """Renames a file in one step, in place of any file of that name."""
    folders = {"src_dir_fd": source.folder.descriptor, "dst_dir_fd": target.folder.descriptor}
    with _naming(target.path):
        os.replace(source.name, target.name, **folders)


def remove(place: Place) -> None:
    """Removes a file's name, or a link; never what the link leads to."""
    with _naming(place.path):
        os.unlink(place.name, dir_fd=place.folder.descriptor)


def discard(place: Place) -> None:
    """Deletes a file or link if there is one."""
    if place.stat() is not None:
        remove(place)


def remove_folder(place: Place) -> None:
    """Removes an empty folder."""
    with _naming(place.path):
        os.rmdir(place.name, dir_fd=place.folder.descriptor)


def publish(file: OpenFile, source: Place, target: Place, check: Callable[[], object] = lambda: None) -> None:
    """Durable rename of a finished file: once it returns, no power cut takes its bytes or its new name.

    Files that were made in the same folder before have their names on the device before `target` has its own. `check`
    is called at the last moment and may raise.
    """
    sync(file)
    sync_folder(target.folder)
    check()
    replace(source, target)
    sync_folder(target.folder)


def publish_bytes(
    data: bytes, source: Place, target: Place, mode: int = 0o666, check: Callable[[], object] = lambda: None
) -> None:
    """Makes `data` all that the file `target` holds, in one durable step: it is written as `source`, then renamed.

    Raises FileExistsError if there is something at `source`. `check` is that of `publish`.
    """
    file = create(source, mode)
    write(file, data, 0)
    publish(file, source, target, check)


# Records that end with `crc32`, the CRC-32 of all their bytes before it.


def record_checksums(records: np.ndarray) -> np.ndarray:
    """The CRC-32 that each record should end with, uint32 `[n]`."""
    size = records.dtype.itemsize
    data = records.view(np.uint8).data
    ends = range(size - 4, len(data), size)
    return np.fromiter((zlib.crc32(data[end - size + 4 : end]) for end in ends), np.uint32, len(records))


def damaged_records(records: np.ndarray) -> np.ndarray:
    """Indices of the records whose checksum does not match."""
    return np.flatnonzero(record_checksums(records) != records["crc32"])
