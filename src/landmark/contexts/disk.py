"""The system calls that change a context, open files, and checksums of records.

Nothing else in this package writes, so a test that replaces these functions sees every step and can make any of them
fail. Errors name their file, which those of calls on a descriptor do not.
"""

import errno
import os
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Progress = Callable[[int, int], object]  # called with the bytes done so far, and the bytes in all


class Damage(ValueError):
    """Raised when committed data is missing or corrupt; `verify` collects all of them."""

    def __init__(self, file: Path, what: str) -> None:
        super().__init__(f"{file} {what}; take the context from a copy, or read the text again")
        self.file = file
        self.what = what


class OpenFile:
    """An open file, closed when nothing refers to it any more; threads may share it.

    Raises OSError if the system does not open it.
    """

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.path = path
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        self.close = weakref.finalize(self, os.close, self.descriptor)

    @property
    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self.descriptor).st_size

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
    """Puts the file's name into errors of calls that only know its descriptor."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


# System calls that change something.


def create(path: Path) -> OpenFile:
    """Makes a new empty file; FileExistsError if there is one."""
    return OpenFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def open_or_create(path: Path) -> OpenFile:
    """Opens a file for writing, a new one if there is none."""
    return OpenFile(path, os.O_RDWR | os.O_CREAT)


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


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the device."""
    folder = OpenFile(path)
    with _naming(path):
        os.fsync(folder.descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder; FileExistsError if there is one."""
    path.mkdir()


def link(source: Path, target: Path) -> None:
    """Gives a file a second name (hard link)."""
    os.link(source, target)


def replace(source: Path, target: Path) -> None:
    """Renames a file in one step, in place of any file of that name."""
    os.replace(source, target)


def remove(path: Path) -> None:
    """Removes a file's name."""
    path.unlink()


def remove_folder(path: Path) -> None:
    """Removes an empty folder."""
    path.rmdir()


def publish(file: OpenFile, target: Path) -> None:
    """Durable rename of a finished file: once it returns, no power cut takes its bytes or its new name.

    Files that were made in the same folder before have their names on the device before `target` has its own.
    """
    sync(file)
    sync_folder(target.parent)
    replace(file.path, target)
    sync_folder(target.parent)


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
