"""The blocks of a segment, each checked when it is first read."""

import os
import zlib

from landmark.contexts.disk import Damage, OpenFile
from landmark.contexts.manifest import Layout
from landmark.store.files import BlockFile


class ContextBlocks(BlockFile):
    """The blocks of a segment, `count` of them committed, the first of them block `first` of the context.

    A layer of a committed block is read whole the first time, whichever head wants it, and compared with its checksum
    in the `landmarks` file. All that read this object share what was checked. Blocks that are appended later were
    written by this process and are not compared. The files stay open as long as something refers to this.
    """

    def __init__(self, file: OpenFile, layout: Layout, landmarks: OpenFile, first: int, count: int) -> None:
        super().__init__(file.descriptor, layout.stored, str(file.path))
        self.file = file
        self._landmarks = landmarks
        self._landmark_bytes = layout.landmark_record.itemsize
        fields = layout.landmark_record.fields or {}
        self._checksums_start = fields["blocks"][1]
        self._first = first
        self._checked = bytearray(count * len(layout.blocks))  # 1 for what is; its pages are taken as they are written

    def read(self, layer: int, head: int, record: int, keys: memoryview, values: memoryview) -> None:
        """Reads one piece; raises Damage if its block is damaged, as well as OSError."""
        if self._is_checked(layer, record):
            super().read(layer, head, record, keys, values)
        else:
            self._read_checked(layer, head, record, keys, values)

    def prefetch(self, layer: int, head: int, record: int) -> None:
        if self._is_checked(layer, record):
            super().prefetch(layer, head, record)
        else:
            self._announce(self._start(layer, 0, record), self.shapes[layer].nbytes)

    def _is_checked(self, layer: int, record: int) -> bool:
        at = record * len(self.shapes) + layer
        return at >= len(self._checked) or self._checked[at] == 1

    def _read_checked(self, layer: int, head: int, record: int, keys: memoryview, values: memoryview) -> None:
        """Reads the pieces of all heads, that of `head` right into its place."""
        piece = self.shapes[layer].piece_bytes
        before, after = (bytearray(piece * heads) for heads in (head, self.shapes[layer].heads - 1 - head))
        parts = [part for part in (before, keys, values, after) if len(part)]
        self._read_into(parts, layer, record, self._start(layer, 0, record))
        crc32 = 0
        for part in parts:
            crc32 = zlib.crc32(part, crc32)
        if crc32 != self._checksum(layer, record):
            raise Damage(self.file.path, f"is damaged in block {self._first + record}, layer {layer}")
        self._checked[record * len(self.shapes) + layer] = 1

    def _checksum(self, layer: int, record: int) -> int:
        offset = record * self._landmark_bytes + self._checksums_start + 4 * layer
        return int.from_bytes(os.pread(self._landmarks.descriptor, 4, offset), "little")
