"""Parts of documents: through them a token finds its document and its text without the rest of either being read."""

import hashlib
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np

from landmark.contexts.disk import Damage, OpenFile, checksums, unsound
from landmark.contexts.manifest import TOKEN, SegmentEntry

PART_TOKENS = 1024
# A part is up to 1,024 tokens of one document, and the text from the first of them to the first of the next part. The
# record says where it begins in the segment's files, and holds the checksums of what it covers.
PART = np.dtype(
    [
        ("token", "<u8"),  # of the segment
        ("byte", "<u8"),  # of the segment's text
        ("character", "<u8"),  # of the document
        ("line", "<u8"),  # byte where the document's line begins
        ("line_bytes", "<u4"),
        ("line_crc32", "<u4"),
        ("text_crc32", "<u4"),
        ("tokens_crc32", "<u4"),
        ("crc32", "<u4"),
    ]
)


def parts_of(text: str, tokens: np.ndarray, line: bytes, *, token: int, byte: int, line_start: int) -> np.ndarray:
    """The parts of a document whose `tokens [n,3]`, text and line begin at these places of a segment's files."""
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
    records["crc32"] = checksums(records)
    return records


def characters_of(tokens: np.ndarray) -> tuple[int, int]:
    """The characters `first:last` of their document that tokens `[n,3]` stand for, one or more."""
    first = int(tokens[0, 1])
    return first, max(first, int(tokens[-1, 2]))


@dataclass(frozen=True)
class Quote:
    """Tokens `start:stop` of a segment, which are of one document: characters `first:last` there, the `text`."""

    document: str
    start: int
    stop: int
    first: int
    last: int
    text: str


@dataclass(frozen=True)
class Part:
    """A record, and where what it covers ends in the segment's files."""

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


class Parts:
    """The parts of a segment for reading. All that it gives was checked.

    `known` are the records of a segment that has no file of them.
    """

    def __init__(self, entry: SegmentEntry, files: dict[str, Path], known: np.ndarray | None = None) -> None:
        self._entry = entry
        self._files = {kind: OpenFile(path) for kind, path in files.items()}
        self._known = known

    def __len__(self) -> int:
        if self._known is not None:
            return len(self._known)
        return self._entry.parts.bytes // PART.itemsize if self._entry.parts is not None else 0

    def __getitem__(self, index: int) -> Part:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = self._record(index)
        token_stop, byte_stop = self._entry.token_count, self._entry.text.bytes
        if index + 1 < len(self):
            after = self._record(index + 1)
            token_stop, byte_stop = int(after["token"]), int(after["byte"])
        fields = {name: int(record[name]) for name in PART.names or () if name != "crc32"}
        return Part(**fields, token_stop=token_stop, byte_stop=byte_stop)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start:stop` of the segment, uint32 `[n,3]`."""
        parts = list(self._covering(start, stop))
        if not parts:
            return np.empty(0, TOKEN)
        found = np.concatenate([self._tokens(part) for _, part in parts])
        return found[start - parts[0][1].token : stop - parts[0][1].token]

    def quotes(self, start: int, stop: int) -> Iterator[Quote]:
        """What tokens `start:stop` of the segment stand for, document by document."""
        while start < stop:
            index = self._at(start)
            parts = self._of_document(index)
            covering = list(takewhile(lambda part: part.token < stop, parts))
            end = min(stop, covering[-1].token_stop)
            places = self.tokens(start, end)
            first, last = characters_of(places)
            yield Quote(self._name(covering[0]), start, end, first, last, self._text(index, first, last))
            start = end

    def _record(self, index: int) -> np.void:
        if self._known is not None:
            return self._known[index]
        file = self._files["parts"]
        record = np.frombuffer(file.read(PART.itemsize, index * PART.itemsize), PART)
        if len(unsound(record)):
            raise Damage(file.path, f"is damaged in record {index}")
        return record[0]

    def _at(self, token: int) -> int:
        """The part that a token is in; parts without tokens stand before the one that begins where they do."""
        return bisect_right(range(len(self)), token, key=lambda index: int(self._record(index)["token"])) - 1

    def _covering(self, start: int, stop: int) -> Iterator[tuple[int, Part]]:
        index = self._at(start)
        while start < stop and index < len(self) and (part := self[index]).token < stop:
            yield index, part
            index += 1

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
        """Characters `first:last` of the document of part `index`, in or near which they are."""
        while self[index].character > first:
            index -= 1
        begin, text = self[index].character, ""
        for part in self._of_document(index):
            if part.character >= last and text:
                break
            text += self._checked("text", part.byte, part.byte_stop, part.text_crc32).decode()
        return text[first - begin : last - begin]

    def _name(self, part: Part) -> str:
        line = self._checked("documents", part.line, part.line + part.line_bytes, part.line_crc32)
        return json.loads(line)["name"]

    def _checked(self, kind: str, start: int, stop: int, crc32: int) -> bytearray:
        file = self._files[kind]
        data = file.read(stop - start, start)
        if zlib.crc32(data) != crc32:
            raise Damage(file.path, f"is damaged between bytes {start} and {stop}")
        return data


def distinct(documents: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The documents, pairs of a name and a text, each once and in order; ValueError for two texts under one name."""
    texts: dict[str, str] = {}
    for name, text in documents:
        if texts.setdefault(name, text) != text:
            raise ValueError(f"two different texts are named {name}: rename one, or leave it out")
    return list(texts.items())


def encoded(name: str, text: str) -> bytes:
    """The text of a document as it is kept, in UTF-8; ValueError if it has none (lone surrogates)."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text of document {name!r} cannot be written as UTF-8: {error}") from error


def digest(data: bytes) -> str:
    """What tells texts apart: SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
