"""The segment that a writer appends to. What it holds beyond the manifest is not committed."""

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from landmark.contexts import disk
from landmark.contexts.blocks import ContextBlocks
from landmark.contexts.committed import open_committed
from landmark.contexts.disk import Folder, OpenFile, record_checksums
from landmark.contexts.manifest import KINDS, Layout, SegmentEntry, extended, segment_name
from landmark.files import release_lock, try_lock


class Guard:
    """Refuses changes after one failed: from then on, what the files hold beyond the commit is not known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._refusal: str | None = None

    def close(self) -> None:
        """Refuses every further change."""
        self._refusal = "this writer was closed"

    def check(self) -> None:
        """Raises ValueError if a change may not be made."""
        if self._refusal is not None:
            raise ValueError(f"{self._path}: {self._refusal}; open the context again, it is as it was committed last")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Wraps a change: ValueError if it may not be made; an error in it refuses all that follow."""
        self.check()
        self._refusal = "an earlier change did not end"
        try:
            yield
        except OSError as error:
            self._refusal = f"an earlier change failed ({error.strerror})"
            raise
        except ValueError:
            self._refusal = "an earlier change was refused"
            raise
        self._refusal = None


class GrowingBlocks(ContextBlocks):
    """Blocks that can be appended to; keeps the checksum of each layer of each new block, in the order of writing."""

    def __init__(self, files: Mapping[str, OpenFile], layout: Layout, entry: SegmentEntry, guard: Guard) -> None:
        super().__init__(files["blocks"], layout, files["landmarks"], entry.first, entry.blocks)
        self.checksums: list[list[int]] = [[] for _ in layout.blocks]
        self._guard = guard

    def write(self, layer: int, record: int, keys: Tensor, values: Tensor) -> list[memoryview]:
        with self._guard.changing():
            written = super().write(layer, record, keys, values)
        self.checksums[layer] += map(zlib.crc32, written)
        return written

    def _write_all(self, data: memoryview, offset: int) -> None:
        disk.write(self.file, data, offset)


class GrowingSegment:
    """The last segment of a context, its `files` open for writing by `new_files` or `grown_files`."""

    def __init__(
        self, number: int, entry: SegmentEntry, layout: Layout, files: Mapping[str, OpenFile], guard: Guard
    ) -> None:
        self.number = number
        self.first = entry.first
        self.files = files
        self._layout = layout
        self._count = entry.blocks  # committed
        self._committed = entry.committed
        self._touched: set[str] = set()
        self.blocks = GrowingBlocks(files, layout, entry, guard)
        self._placed = [entry.blocks] * len(layout.blocks)
        self._keys: list[list[np.ndarray]] = [[] for _ in layout.landmarks]  # [m,Hkv,D] of blocks beyond the commit

    def append(self, kind: str, data: bytes) -> int:
        """Appends to the tokens, the text, the documents or their parts; returns the offset in bytes."""
        start = self._committed[kind].bytes
        disk.write(self.files[kind], data, start)
        self._committed[kind] = extended(self._committed[kind], data)
        self._touched.add(kind)
        return start

    def allocate(self, layer: int, number: int, count: int) -> int:
        """Allocates records for `count` blocks of a layer, of which the first is block `number`; returns its record.

        Raises ValueError unless they follow the layer's last.
        """
        record = number - self.first
        if record != self._placed[layer]:
            raise ValueError(f"layer {layer} goes on with block {self.first + self._placed[layer]}, not {number}")
        self._placed[layer] += count
        self._touched.add("blocks")
        return record

    def append_landmarks(self, layer: int, keys: Tensor) -> None:
        """Keeps landmark keys `[Hkv,m,D]` for the commit."""
        self._keys[layer].append(keys.detach().cpu().numpy().swapaxes(0, 1).copy())

    def new_blocks(self) -> int:
        """Number of blocks beyond the commit.

        Raises ValueError unless every layer has as many placed, written, and given landmark keys.
        """
        counts = set()
        for layer, keys in enumerate(self._keys):
            counts.add((self._placed[layer] - self._count, "placed", layer))
            counts.add((len(self.blocks.checksums[layer]), "written", layer))
            counts.add((sum(map(len, keys)), "given landmark keys", layer))
        least, most = min(counts), max(counts)
        if least[0] != most[0]:
            raise ValueError(
                f"layers differ in their new blocks: {least[0]} were {least[1]} in layer {least[2]}, "
                f"and {most[0]} {most[1]} in layer {most[2]}; commit when all have the same"
            )
        return most[0]

    def commit(self) -> SegmentEntry:
        """Writes the landmark records of new blocks and syncs all files; the entry for the next manifest."""
        new = self.new_blocks()
        if new:
            records = self._new_records(new)
            disk.write(self.files["landmarks"], records.view(np.uint8).data, self._count * records.dtype.itemsize)
            self._touched.add("landmarks")
        for kind in KINDS:
            if kind in self._touched:
                disk.sync(self.files[kind])
        self._touched.clear()
        self._count += new
        return SegmentEntry(self.first, self._count, True, **self._committed)

    def release(self) -> None:
        """Lets another writer grow the segment; the files stay open for reading what is referred to."""
        release_lock(self.files["blocks"].descriptor)

    def _new_records(self, new: int) -> np.ndarray:
        records = np.zeros(new, self._layout.landmark_record)
        for layer, keys in enumerate(self._keys):
            records[str(layer)] = np.concatenate(keys)
            records["blocks"][:, layer] = self.blocks.checksums[layer]
            keys.clear()
            self.blocks.checksums[layer].clear()
        records["crc32"] = record_checksums(records)
        return records


def new_files(segments: Folder, number: int, entry: SegmentEntry, layout: Layout) -> dict[str, OpenFile]:
    """Makes the files of a segment that is not in the manifest yet."""
    files = {kind: disk.create(segments / segment_name(number, kind)) for kind in entry.sizes(layout)}
    try_lock(files["blocks"].descriptor)
    return files


def grown_files(segments: Folder, number: int, entry: SegmentEntry, layout: Layout) -> dict[str, OpenFile] | None:
    """Opens the files of a segment for writing and cuts what a crash left behind the committed bytes.

    None if they must stay as they are: they have other names, as in a copy made of hard links, or a writer whose lock
    was deleted still has them open. What that one writes would be lost here, or be found in another context.
    """
    sizes = entry.sizes(layout)
    files = {kind: open_committed(segments / segment_name(number, kind), sizes[kind], os.O_RDWR) for kind in sizes}
    if any(file.names > 1 for file in files.values()) or not try_lock(files["blocks"].descriptor):
        return None
    for kind, file in files.items():
        if file.size > sizes[kind]:
            disk.truncate(file, sizes[kind])
    return files
