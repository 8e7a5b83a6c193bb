"""Checksums of records that end with one: CRC-32 of all their bytes before it, in a field `crc32`."""

import zlib

import numpy as np


def checksums(records: np.ndarray) -> np.ndarray:
    """What the checksum of each record must be, uint32 `[n]`."""
    size = records.dtype.itemsize
    data = records.view(np.uint8).data
    ends = range(size - 4, len(data), size)
    return np.fromiter((zlib.crc32(data[end - size + 4 : end]) for end in ends), np.uint32, len(records))


def unsound(records: np.ndarray) -> np.ndarray:
    """Which records are not as their checksums say."""
    return np.flatnonzero(checksums(records) != records["crc32"])
