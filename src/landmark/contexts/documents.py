"""The documents of a context: names, texts and tokens, and the passages that retrieved blocks were read from."""

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from landmark.contexts.segments import Document, Segment, characters_of, encode_text, text_digest
from landmark.contexts.snapshot import Snapshot
from landmark.contexts.writer import Writer
from landmark.data.text import encoded
from landmark.hf.tokenizer import bos_tokens, text_encoder
from landmark.limits import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from landmark.hf import Span


@dataclass(frozen=True)
class Source:
    """A passage that was retrieved for an answer: characters `first:last` of the document named `document`.

    `block` and the tokens `start:stop` count from the start of the context; `weight` is the block's mean gate,
    in the heads that rank passages where these are known (`landmark.hf.ranking`). `reread` says whether it was read
    again in front of the question.
    """

    document: str
    first: int
    last: int
    block: int
    start: int
    stop: int
    weight: float
    text: str
    reread: bool = False


class MemoryDocuments:
    """Documents that only this process holds, in the order of their tokens; other tokens may lie between them."""

    def __init__(self) -> None:
        self._added: list[tuple[Document, str, np.ndarray]] = []

    def fork(self) -> "MemoryDocuments":
        """The documents of this moment."""
        branch = MemoryDocuments()
        branch._added = list(self._added)
        return branch

    def add(self, document: Document, text: str, tokens: np.ndarray) -> None:
        """Adds a document with its `tokens`, uint32 `[n,3]`, that begins behind all others."""
        self._added.append((document, text, tokens))

    @property
    def documents(self) -> list[Document]:
        """All documents, in the order in which they were added."""
        return [document for document, _, _ in self._added]

    @property
    def end(self) -> int:
        """The number of the token behind the last document, 0 without any."""
        return self._added[-1][0].first_token + self._added[-1][0].tokens if self._added else 0

    def text(self, document: Document) -> str | None:
        """The text of a document, None if it is not one of these."""
        return next((text for added, text, _ in self._added if added is document), None)

    def between(self, start: int, stop: int) -> Iterator[tuple[Document, str, np.ndarray]]:
        """Documents with some of the tokens `start:stop`, with their texts and all of their tokens."""
        index = max(0, bisect_right(self._added, start, key=lambda added: added[0].first_token) - 1)
        while index < len(self._added) and self._added[index][0].first_token < stop:
            document = self._added[index][0]
            if max(start, document.first_token) < min(stop, document.first_token + document.tokens):
                yield self._added[index]
            index += 1

    def sources(self, span: "Span") -> Iterator[Source]:
        """The passages of one span that lie in documents."""
        for document, text, tokens in self.between(span.start, span.stop):
            start = max(span.start, document.first_token)
            stop = min(span.stop, document.first_token + document.tokens)
            begin, end = characters_of(tokens[start - document.first_token : stop - document.first_token])
            yield Source(document.name, begin, end, span.block, start, stop, span.weight, text[begin:end])


class DocumentStore:
    """Documents on disk, followed by those that only this process holds; new ones go to the writer, if there is one."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._added = MemoryDocuments()

    @property
    def writer(self) -> Writer | None:
        """The snapshot, where it is one that grows."""
        return self.snapshot if isinstance(self.snapshot, Writer) else None

    def fork(self) -> "DocumentStore":
        """The documents of this moment, to which others can be added in memory."""
        branch = DocumentStore(self.snapshot.frozen())
        branch._added = self._added.fork()
        return branch

    @property
    def documents(self) -> list[Document]:
        """All documents, in the order in which they were added."""
        return [*self.snapshot.documents(), *self._added.documents]

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents."""
        return self._added.end or self.snapshot.manifest.token_count

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
        return free_name(name, lambda taken: taken in known and not self._has(known[taken], text))

    def add(self, name: str, text: str, tokens: np.ndarray, source: str | None = None) -> None:
        """Adds a document with its `tokens`, uint32 `[n,3]`; one that goes to the writer is listed after its commit."""
        if self.writer is not None:
            self.writer.add_document(name, text, tokens[:, 0], tokens[:, 1:], source)
        else:
            document = Document.of(name, text, len(tokens), source, first_token=self.tokens)
            self._added.add(document, text, tokens)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start:stop` of the context, uint32 `[n,3]`; Damage if they are damaged."""
        found = [np.empty((0, 3), np.uint32)]
        for segment, first, low, high in self._segments_between(start, stop):
            found.append(segment.parts().tokens(low - first, high - first))
        for document, _, tokens in self._added.between(start, stop):
            first = document.first_token
            found.append(tokens[max(0, start - first) : stop - first])
        return np.concatenate(found)

    def text(self, document: Document) -> str:
        """The text of a document."""
        added = self._added.text(document)
        return self.snapshot.text(document) if added is None else added

    def sources(self, spans: "Iterable[Span]", limit: int) -> list[Source]:
        """Passages of the first `limit` of `spans` that lie in documents; those of the question are left out.

        The bytes read follow from the lengths of the spans, not from those of documents or from their number.
        """
        return first_sources(self.sources_of, spans, limit)

    def sources_of(self, span: "Span") -> Iterator[Source]:
        """The passages of one span that lie in documents."""
        block, weight = span.block, span.weight
        for segment, first, low, high in self._segments_between(span.start, span.stop):
            for p in segment.parts().passages(low - first, high - first):
                yield Source(p.document, p.first, p.last, block, first + p.start, first + p.stop, weight, p.text)
        yield from self._added.sources(span)

    def _segments_between(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int, int]]:
        """Segments with some of the tokens `start:stop`: the number of its first token, and which of the tokens."""
        first = 0
        for segment in self.snapshot.segments:
            end = first + segment.entry.token_count
            if max(start, first) < min(stop, end):
                yield segment, first, max(start, first), min(stop, end)
            first = end

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


def first_sources(sources: "Callable[[Span], Iterable[Source]]", spans: "Iterable[Span]", limit: int) -> list[Source]:
    """The passages that `sources` finds for the first `limit` of `spans` for which there are any."""
    found = (list(sources(span)) for span in spans)
    return list(chain.from_iterable(islice(filter(None, found), limit)))


def spans_with_words(
    sources: "Callable[[Span], Iterable[Source]]", spans: "Iterable[Span]", limit: int
) -> "list[Span]":
    """The first `limit` of `spans` for which `sources` finds passages that are more than white space."""
    return list(islice((span for span in spans if any(one.text.strip() for one in sources(span))), limit))


def in_front(passages: Iterable[Source]) -> str:
    """The texts of passages that are read again, as they stand in front of a question: each and a blank line."""
    return "".join(f"{passage.text.strip()}\n\n" for passage in passages)


def marked_reread(sources: Iterable[Source], again: "Iterable[Span]") -> list[Source]:
    """The sources, of which those in the blocks that were read `again` say so."""
    blocks = {span.block for span in again}
    return [replace(source, reread=source.block in blocks) for source in sources]


def distinct(documents: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The documents, pairs of a name and a text, each once and in order; ValueError for two texts under one name."""
    texts: dict[str, str] = {}
    for name, text in documents:
        if texts.setdefault(name, text) != text:
            raise ValueError(f"two different texts are named {name}: rename one, or leave it out")
    return list(texts.items())


def check_document(name: Any, text: Any) -> None:
    """Raises ValueError for a name or a text that is none, or that UTF-8 cannot encode, and for an empty text."""
    encoded(f"the name of document {name!r:.40}", name)
    encode_text(name, text)
    if not text.strip():
        raise ValueError(f"document {name!r} is empty: there is nothing to read in it")


def tokenized(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    first: bool,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Tokens of a document, uint32 [n,3]: ids, and the first and last character of each.

    The `first` document of a context begins with the tokenizer's own start tokens (BOS). `progress` is called with 0
    after each piece of the text.
    """
    starts = bos_tokens(tokenizer).ids.numpy() if first else np.empty(0, np.int64)
    found = [np.column_stack((starts, np.zeros((len(starts), 2))))]
    for tokens in text_encoder(tokenizer).pieces(text):
        found.append(np.column_stack((tokens.ids, tokens.offsets)))
        if progress is not None:
            progress(0)
    return np.concatenate([columns.astype(np.uint32) for columns in found])


def free_name(name: str, taken: Callable[[str], bool]) -> str:
    """`name`, `name 2`, `name 3` and so on: the first that is not `taken`."""
    return next(free for free in chain([name], (f"{name} {number}" for number in count(2))) if not taken(free))


def check_limit(sources: int) -> None:
    """Raises ValueError for a number of passages that is none."""
    if not is_whole(sources, 0):
        raise ValueError(f"sources is {sources!r}: give the number of passages to name, 0 or more")
