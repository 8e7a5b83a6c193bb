"""A segment for reading: a range of blocks with their landmarks, and the documents that came in the same time."""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landmark.contexts.disk import Damage, OpenFile
from landmark.contexts.documents import PART, Parts, parts_of
from landmark.contexts.manifest import TOKEN, Extent, Layout, SegmentEntry, segment_file
from landmark.store.files import BlockFile

_PIECE_BYTES = 16 << 20  # landmark records are loaded in pieces, so that a long segment takes little memory twice


@dataclass(frozen=True)
class Document:
    """A text that was read: what its line in a segment says, and where the text lies."""

    name: str
    tokens: int
    characters: int
    bytes: int
    crc32: int
    sha256: str | None  # None in contexts of format version 1
    source: str | None
    first_token: int
    segment: int  # of the context's, from 0
    start: int  # byte in the segment's text


class ContextBlocks(BlockFile):
    """The blocks of a segment; the file stays open as long as something refers to this."""

    def __init__(self, file: OpenFile, layout: Layout) -> None:
        super().__init__(file.descriptor, layout.blocks, str(file.path))
        self.file = file


class Segment:
    """The committed part of a segment. Its files are looked at when they are asked for."""

    def __init__(
        self, folder: Path, number: int, entry: SegmentEntry, layout: Layout, blocks: ContextBlocks | None = None
    ) -> None:
        self.number = number
        self.entry = entry
        self._folder = folder
        self._layout = layout
        self._blocks = blocks
        self._made_parts: np.ndarray | None = None

    @property
    def blocks(self) -> ContextBlocks:
        """Its blocks; the file stays open from here on."""
        if self._blocks is None:
            self._blocks = ContextBlocks(OpenFile(self.path("blocks")), self._layout)
        return self._blocks

    @property
    def first(self) -> int:
        """Number of its first block, which is record 0 of `blocks`."""
        return self.entry.first

    @property
    def count(self) -> int:
        """Blocks in it."""
        return self.entry.blocks

    def path(self, kind: str) -> Path:
        """Its file of a kind."""
        return segment_file(self._folder, self.number, kind)

    def absences(self) -> list[Damage]:
        """Its files that are missing or cut short."""
        found = []
        for kind, size in self.entry.sizes(self._layout).items():
            try:
                open_committed(self.path(kind), size)
            except Damage as damage:
                found.append(damage)
        return found

    def landmark_records(self) -> Iterator[tuple[int, np.ndarray]]:
        """Pieces of the landmark records, unchecked, each with the number of its first in the segment."""
        dtype = self._layout.landmark_record
        file = OpenFile(self.path("landmarks"))
        step = max(1, _PIECE_BYTES // dtype.itemsize)
        for start in range(0, self.count, step):
            count = min(step, self.count - start)
            yield start, np.frombuffer(file.read(count * dtype.itemsize, start * dtype.itemsize), dtype)

    def tokens(self) -> np.ndarray:
        """Id, start and stop character of each token, uint32 `[n,3]`."""
        return np.frombuffer(read_extent(OpenFile(self.path("tokens")), self.entry.tokens), TOKEN)

    def parts(self) -> Parts:
        """The parts of its documents. A segment of format version 1 has none: there all of it is read once."""
        kinds = ("tokens", "text", "documents", *(("parts",) if self.entry.parts is not None else ()))
        if self.entry.parts is None and self._made_parts is None:
            self._made_parts = self._make_parts()
        return Parts(self.entry, {kind: self.path(kind) for kind in kinds}, self._made_parts)

    def _make_parts(self) -> np.ndarray:
        lines = read_extent(OpenFile(self.path("documents")), self.entry.documents).splitlines(keepends=True)
        tokens, line_start, made = self.tokens(), 0, [np.zeros(0, PART)]
        for document, line in zip(self.documents(0, 0), lines, strict=True):
            token, byte = document.first_token, document.start
            of_it = tokens[token : token + document.tokens]
            text = self.text(document)
            made.append(parts_of(text, of_it, bytes(line), token=token, byte=byte, line_start=line_start))
            line_start += len(line)
        return np.concatenate(made)

    def text(self, document: Document) -> str:
        """The text of one of its documents."""
        path = self.path("text")
        data = OpenFile(path).read(document.bytes, document.start)
        if zlib.crc32(data) != document.crc32:
            raise Damage(path, f"is damaged in document {document.name!r}")
        return data.decode()

    def record_damage(self, record: int) -> Damage:
        """What to say of a landmark record that is not sound."""
        return Damage(
            self.path("landmarks"), f"is damaged in record {record}, the landmarks of block {self.first + record}"
        )

    def documents(self, index: int, first_token: int) -> list[Document]:
        """Its documents, where it is the `index`-th segment and its tokens begin at `first_token`."""
        found, start, may_miss = [], 0, {"source": None, "sha256": None}
        for line in read_extent(OpenFile(self.path("documents")), self.entry.documents).splitlines():
            document = Document(**{**may_miss, **json.loads(line)}, first_token=first_token, segment=index, start=start)
            found.append(document)
            first_token += document.tokens
            start += document.bytes
        return found


def open_committed(path: Path, committed: int, flags: int = os.O_RDONLY) -> OpenFile:
    """Opens a file; Damage if it is missing or shorter than what was committed."""
    try:
        file = OpenFile(path, flags)
    except FileNotFoundError as error:
        raise Damage(path, "is missing") from error
    _check_size(file, committed)
    return file


def read_extent(file: OpenFile, extent: Extent) -> bytearray:
    """The committed bytes of a file; Damage if they are not what was committed."""
    _check_size(file, extent.bytes)
    data = file.read(extent.bytes)
    if zlib.crc32(data) != extent.crc32:
        raise Damage(file.path, "is damaged: its checksum does not fit")
    return data


def _check_size(file: OpenFile, committed: int) -> None:
    if file.size < committed:
        raise Damage(file.path, f"was cut short: it has {file.size} bytes and {committed} were committed")
