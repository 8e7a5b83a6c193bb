"""Committed bytes of a file: opened with the size that they have, and read with their checksum."""

import mmap
import os
import zlib

from landmark.contexts import disk
from landmark.contexts.disk import Damage, OpenFile, Place
from landmark.contexts.manifest import Committed

_PIECE_BYTES = 4 << 20
_MUCH = 64 << 20  # bytes that are not taken into memory before their checksum is known to fit

_UNFIT = "is damaged: its checksum does not fit"


def open_committed(place: Place, committed: int, flags: int = os.O_RDONLY, *, grows: bool = True) -> OpenFile:
    """Opens a file; Damage if it is missing, no regular file, or has another size than was committed.

    With fewer bytes it was cut short; more are allowed where it `grows`.
    """
    try:
        file = disk.open_file(place, flags)
    except FileNotFoundError as error:
        raise Damage(place.path, "is missing") from error
    check_size(file, committed, grows=grows)
    return file


def check_size(file: OpenFile, committed: int, *, grows: bool = True) -> None:
    """Raises Damage for a file with fewer bytes than were committed, or with more unless it `grows`."""
    size = file.size
    if size < committed:
        raise Damage(file.path, f"was cut short: it has {size} bytes and {committed} were committed")
    if size > committed and not grows:
        raise Damage(file.path, f"has {size - committed} bytes behind the {committed} that were committed")


def check_committed(file: OpenFile, committed: Committed) -> None:
    """Raises Damage if a file's bytes are not what was committed; takes a few MiB of memory."""
    check_size(file, committed.bytes)
    if _crc32(file, 0, committed.bytes) != committed.crc32:
        raise Damage(file.path, _UNFIT)


def read_committed(file: OpenFile, committed: Committed) -> bytearray:
    """The committed bytes of a file; Damage if they are not what was committed."""
    check_size(file, committed.bytes)
    return read_checked(file, 0, committed.bytes, committed.crc32, _UNFIT)


def map_committed(file: OpenFile, committed: Committed) -> mmap.mmap | bytearray:
    """The same, in pages that processes share where they may: checked once, now. What is written to it is private."""
    check_size(file, committed.bytes)
    data = disk.mapped(file, committed.bytes)
    if data is None:
        return read_committed(file, committed)
    if zlib.crc32(data) != committed.crc32:
        raise Damage(file.path, _UNFIT)
    return data


def read_checked(file: OpenFile, start: int, size: int, crc32: int, what: str) -> bytearray:
    """`size` bytes from `start` on; Damage, saying `what` is wrong, if they have another checksum.

    A file with a hole has any size and takes no space on disk: many bytes are checked piece by piece before they are
    taken into memory.
    """
    if size > _MUCH and _crc32(file, start, size) != crc32:
        raise Damage(file.path, what)
    data = file.read(size, start)
    if zlib.crc32(data) != crc32:
        raise Damage(file.path, what)
    return data


def decoded(file: OpenFile, data: bytearray) -> str:
    """Text of a file in UTF-8; Damage if it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Damage(file.path, f"is no text in UTF-8: {error.reason}") from error


def _crc32(file: OpenFile, start: int, size: int) -> int:
    found = 0
    for at in range(start, start + size, _PIECE_BYTES):
        found = zlib.crc32(file.read(min(_PIECE_BYTES, start + size - at), at), found)
    return found
