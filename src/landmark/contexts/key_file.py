"""The key file: landmark keys once more, contiguous by layer and head, for processes to map and share.

It is derived data that no commit counts on. A reader compares it with the landmark records, which it has checked, and
writes what differs into private pages. So a file that is old, damaged or false costs memory, and nothing else.
"""

from collections.abc import Iterable
from contextlib import suppress

import numpy as np

from landmark.contexts import disk
from landmark.contexts.disk import Damage, Folder, OpenFile
from landmark.contexts.manifest import KEYS, NEW_KEYS, Layout

LEAST_BYTES = 1 << 20  # of keys; fewer are not worth a file
_SPARE = 8  # one eighth of the blocks: room for later ones, which are private pages of a reader
_ROUND = 64  # blocks: then the keys of a head begin with a page where they have a multiple of 16 entries


def open_keys(folder: Folder, layout: Layout, blocks: int) -> OpenFile | None:
    """The key file of a context, None if there is none that has room for `blocks`, and not for many more."""
    try:
        file = disk.open_file(folder / KEYS)
    except (OSError, Damage):
        return None
    capacity, rest = divmod(file.size, layout.landmark_bytes)
    return file if not rest and blocks <= capacity <= 2 * _capacity(blocks) else None


def mapped_keys(folder: Folder, layout: Layout, blocks: int) -> list[np.ndarray] | None:
    """Landmark keys `[Hkv,capacity,D]` of each layer as the key file has them, with room for at least `blocks`.

    Unchecked: the caller compares them. What is written to them stays in this process. None where no file can be used.
    """
    file = open_keys(folder, layout, blocks)
    data = None if file is None else disk.mapped(file, file.size)
    if data is None:
        return None
    numbers, capacity, found = np.frombuffer(data, "<f4"), len(data) // layout.landmark_bytes, []
    for offset, (heads, width) in zip(_offsets(layout, capacity), layout.landmarks, strict=True):
        start = offset // numbers.itemsize
        found.append(numbers[start : start + heads * capacity * width].reshape(heads, capacity, width))
    return found


def update_keys(folder: Folder, layout: Layout, blocks: int, records: Iterable[tuple[int, np.ndarray]]) -> None:
    """Writes the key file anew if it has no room for `blocks`; `records` are those of all blocks, piece by piece.

    Each piece comes with the number of its first block. The new file takes the name of the one before, which stays as
    it was for those that map it. Nothing is synced, and no failure is an error, since no commit counts on the file.
    """
    before, needed = (folder / KEYS).stat(), blocks * layout.landmark_bytes
    if needed < LEAST_BYTES or (before is not None and needed <= before.st_size):
        return
    with suppress(OSError, Damage):
        disk.discard(folder / NEW_KEYS)
        file = disk.create(folder / NEW_KEYS, disk.OTHERS_READ)
        _write(file, layout, _capacity(blocks), records)
        disk.replace(folder / NEW_KEYS, folder / KEYS)


def _write(file: OpenFile, layout: Layout, capacity: int, records: Iterable[tuple[int, np.ndarray]]) -> None:
    disk.truncate(file, capacity * layout.landmark_bytes)  # what is not written below takes no space on disk
    for first, piece in records:
        for layer, offset in enumerate(_offsets(layout, capacity)):
            for head, keys in enumerate(piece[str(layer)].swapaxes(0, 1)):
                data = np.ascontiguousarray(keys)
                begin = (head * capacity + first) * data[:1].nbytes
                disk.write(file, data.view(np.uint8).data.cast("B"), offset + begin)


def _offsets(layout: Layout, capacity: int) -> list[int]:
    """Where the keys of each layer begin in the file, in bytes."""
    sizes = [heads * width * capacity * 4 for heads, width in layout.landmarks]
    return [sum(sizes[:layer]) for layer in range(len(sizes))]


def _capacity(blocks: int) -> int:
    """Blocks that a file for so many has room for."""
    wanted = blocks + blocks // _SPARE
    return -(-wanted // _ROUND) * _ROUND
