"""The documents of a context: names, texts and tokens, and the passages that retrieved blocks were read from."""

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import numpy as np

from landmark.contexts.segments import Document, Segment, characters_of, encode_text, text_digest
from landmark.contexts.snapshot import Snapshot
from landmark.contexts.writer import Writer

if TYPE_CHECKING:
    from landmark.hf import Span


@dataclass(frozen=True)
class Source:
    """A passage that was retrieved for an answer: characters `first:last` of the document named `document`.

    `block` and the tokens `start:stop` count from the start of the context; `weight` is the block's mean gate.
    """

    document: str
    first: int
    last: int
    block: int
    start: int
    stop: int
    weight: float
    text: str


class DocumentStore:
    """Documents on disk, followed by those that only this process holds; new ones go to the `writer`, if any."""

    def __init__(self, snapshot: Snapshot, writer: Writer | None = None) -> None:
        self.snapshot = snapshot
        self.writer = writer
        self._added: list[tuple[Document, str, np.ndarray]] = []

    def fork(self) -> "DocumentStore":
        """The documents of this moment, to which others can be added in memory."""
        branch = DocumentStore(self.snapshot.frozen())
        branch._added = list(self._added)
        return branch

    @property
    def documents(self) -> list[Document]:
        """All documents, in the order in which they were added."""
        return [*self.snapshot.documents(), *(document for document, _, _ in self._added)]

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents."""
        if not self._added:
            return self.snapshot.manifest.token_count
        last = self._added[-1][0]
        return last.first_token + last.tokens

    def missing(self, documents: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of `documents`, pairs of a name and a text, that are not in the store, each once.

        Raises ValueError for another text under a known name, and for two texts under one name.
        """
        known, new = self._by_name(), []
        for name, text in distinct(documents):
            if name not in known:
                new.append((name, text))
            elif not self._has(known[name], text):
                raise ValueError(
                    f"{self.snapshot.path} holds another text named {name}: rename the file, or read into another "
                    "context"
                )
        return new

    def name_for(self, name: str, text: str) -> str:
        """`name`, `name 2`, `name 3` and so on: the first that no document has, or that this very text has already."""
        known = self._by_name()
        names = chain([name], (f"{name} {number}" for number in count(2)))
        return next(name for name in names if name not in known or self._has(known[name], text))

    def add(self, name: str, text: str, tokens: np.ndarray, source: str | None = None) -> None:
        """Adds a document with its `tokens`, uint32 `[n,3]`; one that goes to the writer is listed after its commit."""
        if self.writer is not None:
            self.writer.add_document(name, text, tokens[:, 0], tokens[:, 1:], source)
        else:
            document = Document.of(name, text, len(tokens), source, first_token=self.tokens)
            self._added.append((document, text, tokens))

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start:stop` of the context, uint32 `[n,3]`; Damage if they are damaged."""
        found = [np.empty((0, 3), np.uint32)]
        for segment, first, low, high in self._segments_between(start, stop):
            found.append(segment.parts().tokens(low - first, high - first))
        for document, _, tokens in self._added_between(start, stop):
            first = document.first_token
            found.append(tokens[max(0, start - first) : stop - first])
        return np.concatenate(found)

    def text(self, document: Document) -> str:
        """The text of a document."""
        for added, text, _ in self._added:
            if added is document:
                return text
        return self.snapshot.text(document)

    def sources(self, spans: "Iterable[Span]", limit: int) -> list[Source]:
        """Passages of the first `limit` of `spans` that lie in documents; those of the question are left out.

        The bytes read follow from the lengths of the spans, not from those of documents or from their number.
        """
        tokens = self.tokens
        known = islice((span for span in spans if span.start < tokens), limit)
        return [source for span in known for source in self._sources(span)]

    def _sources(self, span: "Span") -> Iterator[Source]:
        block, weight = span.block, span.weight
        for segment, first, low, high in self._segments_between(span.start, span.stop):
            for p in segment.parts().passages(low - first, high - first):
                yield Source(p.document, p.first, p.last, block, first + p.start, first + p.stop, weight, p.text)
        for document, text, tokens in self._added_between(span.start, span.stop):
            start = max(span.start, document.first_token)
            stop = min(span.stop, document.first_token + document.tokens)
            begin, end = characters_of(tokens[start - document.first_token : stop - document.first_token])
            yield Source(document.name, begin, end, block, start, stop, weight, text[begin:end])

    def _segments_between(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int, int]]:
        """Segments with some of the tokens `start:stop`: the number of its first token, and which of the tokens."""
        first = 0
        for segment in self.snapshot.segments:
            end = first + segment.entry.token_count
            if max(start, first) < min(stop, end):
                yield segment, first, max(start, first), min(stop, end)
            first = end

    def _added_between(self, start: int, stop: int) -> Iterator[tuple[Document, str, np.ndarray]]:
        """Documents in memory with some of the tokens `start:stop`."""
        index = max(0, bisect_right(self._added, start, key=lambda added: added[0].first_token) - 1)
        while index < len(self._added) and self._added[index][0].first_token < stop:
            document = self._added[index][0]
            if max(start, document.first_token) < min(stop, document.first_token + document.tokens):
                yield self._added[index]
            index += 1

    def _by_name(self) -> dict[str, list[Document]]:
        known: dict[str, list[Document]] = {}
        for document in self.documents:
            known.setdefault(document.name, []).append(document)
        return known

    def _has(self, documents: list[Document], text: str) -> bool:
        """Whether one of `documents` has this text."""
        return any(self._is(document, text) for document in documents)

    def _is(self, document: Document, text: str) -> bool:
        data = encode_text(document.name, text)
        if document.sha256 is not None:
            return document.sha256 == text_digest(data)
        # Format version 1 kept a CRC-32 alone, which other texts may share: there the text itself decides.
        return (document.bytes, document.crc32) == (len(data), zlib.crc32(data)) and self.text(document) == text


def distinct(documents: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The documents, pairs of a name and a text, each once and in order; ValueError for two texts under one name."""
    texts: dict[str, str] = {}
    for name, text in documents:
        if texts.setdefault(name, text) != text:
            raise ValueError(f"two different texts are named {name}: rename one, or leave it out")
    return list(texts.items())
