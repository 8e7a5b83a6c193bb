"""Segment files: a range of blocks with their landmark keys, and the documents added with them, for reading.

A segment is six files (docs/context_format.md). Files only grow, and committed bytes never change.
"""

import hashlib
import json
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from landmark.contexts import fields
from landmark.contexts.blocks import ContextBlocks
from landmark.contexts.committed import decoded, read_checked, read_committed
from landmark.contexts.disk import Damage, OpenFile, damaged_records, record_checksums
from landmark.contexts.fields import Malformed
from landmark.contexts.manifest import PART, TOKEN, Layout, SegmentEntry
from landmark.data.text import encoded

PART_TOKENS = 1024
_LINE = ("name", "tokens", "characters", "bytes", "crc32")  # fields of every document's line
_LOAD_BYTES = 16 << 20  # landmark records are loaded in pieces, so that a long segment is not in memory twice


@dataclass(frozen=True)
class Document:
    """A document of a context: name, sizes, checksums, and where it begins.

    `tokens`, `characters` and `bytes` (of the text in UTF-8) are counts; `sha256` is in hexadecimal digits.
    """

    name: str
    tokens: int
    characters: int
    bytes: int
    crc32: int
    sha256: str | None  # None in contexts of format version 1
    source: str | None
    first_token: int  # of the context
    segment: int  # index in the context, -1 for a document in memory
    start: int  # byte in the segment's text

    @classmethod
    def of(cls, name: str, text: str, tokens: int, source: str | None = None, *, first_token: int = 0) -> "Document":
        """A document in memory; ValueError for a text that UTF-8 cannot encode (lone surrogates)."""
        data = encode_text(name, text)
        crc32, sha256 = zlib.crc32(data), text_digest(data)
        return cls(name, tokens, len(text), len(data), crc32, sha256, source, first_token, segment=-1, start=0)


def document_line(document: Document) -> bytes:
    """The line of a document in its segment's `documents` file: JSON, without what follows from earlier lines."""
    kept = ("name", "tokens", "characters", "bytes", "crc32", "sha256")
    fields = {field: getattr(document, field) for field in kept}
    if document.source is not None:
        fields["source"] = document.source
    return json.dumps(fields).encode() + b"\n"


def parse_line(line: bytes | bytearray) -> dict[str, Any]:
    """The fields of a document's line, `sha256` and `source` None where it has none; Malformed if it is none."""
    found = fields.fields(fields.parse(line, "a line"), "a line", _LINE, ("sha256", "source"))
    for name in _LINE:
        (fields.text if name == "name" else fields.whole)(found[name], name)
    optional = {name: fields.text(found[name], name) for name in ("sha256", "source") if name in found}
    return {"sha256": None, "source": None, **found, **optional}


def encode_text(name: str, text: str) -> bytes:
    """The text of a document in UTF-8, as it is stored; ValueError if UTF-8 cannot encode it (lone surrogates)."""
    return encoded(f"the text of document {name!r}", text)


def text_digest(data: bytes) -> str:
    """SHA-256 of a stored text in hexadecimal digits: equal texts are the same document."""
    return hashlib.sha256(data).hexdigest()


class Segment:
    """The committed part of a segment, read from its open `files`, by kind.

    With a `name`, its one document goes by that instead of the name in its line.
    """

    def __init__(
        self,
        number: int,
        entry: SegmentEntry,
        layout: Layout,
        files: Mapping[str, OpenFile],
        blocks: ContextBlocks | None = None,
        name: str | None = None,
    ) -> None:
        self.number = number
        self.entry = entry
        self.files = files
        self.name = name
        self._layout = layout
        self._blocks = blocks
        self._computed_parts: np.ndarray | None = None

    @property
    def blocks(self) -> ContextBlocks:
        """Its blocks."""
        if self._blocks is None:
            files = self.files
            self._blocks = ContextBlocks(files["blocks"], self._layout, files["landmarks"], self.first, self.count)
        return self._blocks

    @property
    def first(self) -> int:
        """Number of its first block, which is record 0 of `blocks`."""
        return self.entry.first

    @property
    def count(self) -> int:
        """Number of its blocks."""
        return self.entry.blocks

    def path(self, kind: str) -> Path:
        """Where its file of a kind was opened."""
        return self.files[kind].path

    def landmark_records(self) -> Iterator[tuple[int, np.ndarray]]:
        """Pieces of the landmark records, unchecked, each with the index of its first record in the segment."""
        dtype = self._layout.landmark_record
        file = self.files["landmarks"]
        step = max(1, _LOAD_BYTES // dtype.itemsize)
        for start in range(0, self.count, step):
            count = min(step, self.count - start)
            yield start, np.frombuffer(file.read(count * dtype.itemsize, start * dtype.itemsize), dtype)

    def record_damage(self, record: int) -> Damage:
        """The error for a landmark record whose checksum does not match."""
        return Damage(
            self.path("landmarks"), f"is damaged in record {record}, the landmarks of block {self.first + record}"
        )

    def tokens(self) -> np.ndarray:
        """Id, start and stop character of each token, uint32 `[n,3]`; Damage if they are damaged."""
        return np.frombuffer(read_committed(self.files["tokens"], self.entry.tokens), TOKEN)

    def documents(self, index: int, first_token: int) -> list[Document]:
        """Its documents, where it is segment `index` of the context and its tokens begin at `first_token`.

        Raises Damage if their lines are damaged, or count other tokens or bytes than the manifest.
        """
        found, start, token = [], 0, first_token
        for line in self._document_lines():
            try:
                held = Document(**parse_line(line), first_token=token, segment=index, start=start)
            except Malformed as error:
                raise Damage(self.path("documents"), f"does not describe document {len(found)}: {error}") from error
            found.append(held if self.name is None else replace(held, name=self.name))
            token, start = token + held.tokens, start + held.bytes
        if (token - first_token, start) != (self.entry.token_count, self.entry.text.bytes):
            raise Damage(
                self.path("documents"),
                f"has documents of {token - first_token} tokens and {start} bytes, and the manifest counts "
                f"{self.entry.token_count} and {self.entry.text.bytes}",
            )
        return found

    def text(self, document: Document) -> str:
        """The text of one of its documents; Damage if it is damaged."""
        file = self.files["text"]
        what = f"is damaged in document {document.name!r}"
        return decoded(file, read_checked(file, document.start, document.bytes, document.crc32, what))

    def parts(self) -> "Parts":
        """The parts of its documents. A segment of format version 1 has no such file: they are computed once."""
        if self.entry.parts is None and self._computed_parts is None:
            self._computed_parts = self._compute_parts()
        return Parts(self.entry, self.files, self._computed_parts, self.name)

    def _compute_parts(self) -> np.ndarray:
        tokens, line_start, found = self.tokens(), 0, [np.zeros(0, PART)]
        for document, line in zip(self.documents(0, 0), self._document_lines(), strict=True):
            token, byte = document.first_token, document.start
            own = tokens[token : token + document.tokens]
            text = self.text(document)
            found.append(parts_of(text, own, bytes(line), token=token, byte=byte, line_start=line_start))
            line_start += len(line)
        return np.concatenate(found)

    def _document_lines(self) -> list[bytearray]:
        return read_committed(self.files["documents"], self.entry.documents).splitlines(keepends=True)


# Parts: the index from tokens to documents. A token finds its document and text, and the rest of either is not read.


@dataclass(frozen=True)
class Part:
    """A record of the parts file, and where what it covers ends in the other files."""

    token: int
    byte: int
    character: int
    line: int
    line_bytes: int
    line_crc32: int
    text_crc32: int
    tokens_crc32: int
    token_stop: int
    byte_stop: int


@dataclass(frozen=True)
class Passage:
    """Tokens `start:stop` of a segment, all of one document: its characters `first:last`, which are `text`."""

    document: str
    start: int
    stop: int
    first: int
    last: int
    text: str


class Parts:
    """The parts of a segment for reading. Everything returned was checked; raises Damage.

    `records` are those of a segment without a parts file, `name` that of its segment.
    """

    def __init__(
        self,
        entry: SegmentEntry,
        files: Mapping[str, OpenFile],
        records: np.ndarray | None = None,
        name: str | None = None,
    ) -> None:
        self._entry = entry
        self._files = files
        self._records = records
        self._own_name = name
        self._read: dict[int, np.void] = {}  # records that were read and checked

    def __len__(self) -> int:
        if self._records is not None:
            return len(self._records)
        return self._entry.parts.bytes // PART.itemsize if self._entry.parts is not None else 0

    def __getitem__(self, index: int) -> Part:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._record(index)
        token_stop, byte_stop = self._entry.token_count, self._entry.text.bytes
        if index + 1 < len(self):
            after = self._record(index + 1)
            token_stop, byte_stop = int(after["token"]), int(after["byte"])
        numbers = {name: int(record[name]) for name in PART.names or () if name != "crc32"}
        part = Part(**numbers, token_stop=token_stop, byte_stop=byte_stop)
        self._check(part, index)
        return part

    def _check(self, part: Part, index: int) -> None:
        """Raises Damage for a part of what is not there: its record may be another program's."""
        entry = self._entry
        within = (
            part.token <= part.token_stop <= min(part.token + PART_TOKENS, entry.token_count)
            and part.byte <= part.byte_stop <= entry.text.bytes
            and part.line + part.line_bytes <= entry.documents.bytes
        )
        if not within or (index == 0 and (part.token, part.byte, part.character) != (0, 0, 0)):
            raise self._false(index)

    def _false(self, index: int) -> Damage:
        """The error for a record that does not fit the others."""
        file = self._files.get("parts", self._files["documents"])
        return Damage(file.path, f"is damaged in record {index} of its parts: it does not fit the others")

    def check(self) -> None:
        """Raises Damage unless all parts cover what they say, and all lines."""
        lines, character = [], 0
        for index in range(len(self)):
            part = self[index]
            self._tokens(part)
            text = self._text_of(part)
            if not lines or lines[-1] != part.line:
                self._name(part)
                lines.append(part.line)
                character = 0
            if part.character != character:
                raise self._false(index)
            character += len(text)
        data = self._files["documents"].read(self._entry.documents.bytes)
        starts = [0, *(match.end() for match in re.finditer(rb"\n", data))][:-1]
        if lines != starts:
            raise Damage(self._files["parts"].path, "is damaged: it does not have the parts of all documents")

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start:stop` of the segment, uint32 `[n,3]`."""
        parts = list(self._covering(start, stop))
        if not parts:
            return np.empty(0, TOKEN)
        found = np.concatenate([self._tokens(part) for part in parts])
        return found[start - parts[0].token : stop - parts[0].token]

    def passages(self, start: int, stop: int) -> Iterator[Passage]:
        """The text of tokens `start:stop` of the segment, one passage for each document."""
        while start < stop:
            index = self._containing(start)
            covering = list(takewhile(lambda part: part.token < stop, self._of_document(index)))
            if not covering or covering[-1].token_stop <= start:
                raise self._false(index)
            end = min(stop, covering[-1].token_stop)
            first, last = characters_of(self.tokens(start, end))
            yield Passage(self._name(covering[0]), start, end, first, last, self._text(index, first, last))
            start = end

    def _record(self, index: int) -> np.void:
        if self._records is not None:
            return self._records[index]
        if index not in self._read:
            file = self._files["parts"]
            record = np.frombuffer(file.read(PART.itemsize, index * PART.itemsize), PART)
            if len(damaged_records(record)):
                raise Damage(file.path, f"is damaged in record {index}")
            self._read[index] = record[0]
        return self._read[index]

    def _containing(self, token: int) -> int:
        """Index of the part with a token; parts without tokens stand before the one that begins where they do."""
        return bisect_right(range(len(self)), token, key=lambda index: int(self._record(index)["token"])) - 1

    def _covering(self, start: int, stop: int) -> Iterator[Part]:
        index = self._containing(start)
        while start < stop and index < len(self) and (part := self[index]).token < stop:
            yield part
            index += 1

    def _begins(self, index: int) -> bool:
        """Whether part `index` is the first of its document."""
        return index == 0 or self[index - 1].line != self[index].line

    def _of_document(self, index: int) -> Iterator[Part]:
        """Part `index` and those that follow it in its document."""
        line = self[index].line
        while index < len(self) and (part := self[index]).line == line:
            yield part
            index += 1

    def _tokens(self, part: Part) -> np.ndarray:
        size = TOKEN.itemsize
        data = self._checked("tokens", part.token * size, part.token_stop * size, part.tokens_crc32)
        return np.frombuffer(data, TOKEN)

    def _text(self, index: int, first: int, last: int) -> str:
        """Characters `first:last` of a document; they begin in part `index` or near it."""
        while self[index].character > first and not self._begins(index):
            index -= 1
        begin, text = self[index].character, ""
        if begin and self._begins(index):
            raise self._false(index)
        for part in self._of_document(index):
            if part.character >= last and text:
                break
            text += self._text_of(part)
        return text[first - begin : last - begin]

    def _text_of(self, part: Part) -> str:
        return decoded(self._files["text"], self._checked("text", part.byte, part.byte_stop, part.text_crc32))

    def _name(self, part: Part) -> str:
        line = self._checked("documents", part.line, part.line + part.line_bytes, part.line_crc32)
        try:
            return self._own_name or parse_line(line)["name"]
        except Malformed as error:
            raise Damage(self._files["documents"].path, f"does not describe a document: {error}") from error

    def _checked(self, kind: str, start: int, stop: int, crc32: int) -> bytearray:
        what = f"is damaged between bytes {start} and {stop}"
        return read_checked(self._files[kind], start, stop - start, crc32, what)


def parts_of(text: str, tokens: np.ndarray, line: bytes, *, token: int, byte: int, line_start: int) -> np.ndarray:
    """Part records of a document whose `tokens [n,3]`, text and line begin at these offsets of the segment's files."""
    firsts = range(0, max(1, len(tokens)), PART_TOKENS)
    # Tokens seldom begin before an earlier one does; their parts never do.
    characters = np.maximum.accumulate([0, *tokens[PART_TOKENS::PART_TOKENS, 1].tolist()]).tolist()
    pieces = [text[start:stop].encode() for start, stop in pairwise([*characters, len(text)])]
    records = np.zeros(len(firsts), PART)
    records["token"] = token + np.array(firsts)
    records["byte"] = byte + np.cumsum([0, *map(len, pieces[:-1])])
    records["character"] = characters
    records["line"], records["line_bytes"], records["line_crc32"] = line_start, len(line), zlib.crc32(line)
    records["text_crc32"] = [zlib.crc32(piece) for piece in pieces]
    records["tokens_crc32"] = [zlib.crc32(tokens[first : first + PART_TOKENS].tobytes()) for first in firsts]
    records["crc32"] = record_checksums(records)
    return records


def characters_of(tokens: np.ndarray) -> tuple[int, int]:
    """The characters `first:last` of their document that tokens `[n,3]`, n >= 1, cover."""
    first = int(tokens[0, 1])
    return first, max(first, int(tokens[-1, 2]))
