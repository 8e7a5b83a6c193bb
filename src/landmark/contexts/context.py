"""`Context`: documents that a model has read and the KV cache of them, kept on disk for any number of questions."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch

from landmark.contexts import compatibility
from landmark.contexts.caches import beginning, cache_of
from landmark.contexts.collection_manifest import is_collection
from landmark.contexts.disk import Progress
from landmark.contexts.documents import (
    DocumentStore,
    Source,
    check_document,
    check_limit,
    distinct,
    spans_with_words,
    tokenized,
)
from landmark.contexts.either import open_snapshot
from landmark.contexts.folder import fork
from landmark.contexts.remote import local_copy, local_manifest, mending
from landmark.contexts.segments import Document
from landmark.contexts.snapshot import Snapshot
from landmark.contexts.verify import check_snapshot
from landmark.contexts.writer import Writer, create, open_writer
from landmark.hf import LandmarkCache, read
from landmark.hf.cache import CacheOptions
from landmark.hf.cache_state import cache_state
from landmark.hf.fingerprint import model_mark
from landmark.hf.ranking import Ranking
from landmark.hf.reader import TextTo, answer
from landmark.hf.rereading import Rereading, check_reread
from landmark.hf.tokenizer import encode
from landmark.hf.trace import Span, Trace
from landmark.process_memory import return_freed_pages
from landmark.settings import Verification, check_verification
from landmark.store.base import Traffic
from landmark.urls import path_of, url_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMIT_SECONDS = 30.0
_CHUNKS = 8  # prefilled between two looks at the clock


@dataclass(frozen=True)
class Answer:
    """Generated text and token ids, which continue `prompt`.

    `sources` are the passages that were retrieved for it, the most telling first; `traffic` counts blocks and bytes
    read; `trace` has what each query of prompt and answer attended to, its tokens counted from the start of the
    context.
    """

    prompt: str
    text: str
    ids: list[int]
    sources: list[Source]
    traffic: Traffic
    trace: Trace = field(compare=False, repr=False)  # tensors, which do not compare as a whole


class Context:
    """Documents and the KV cache of a model that has read them, on disk. Made by `create`, `open` and `fork`.

    A context is a folder. One process may write to it while others read; what was committed survives any crash
    (docs/reliability.md). Landmark keys are loaded; keys and values stay on disk, and a budget of blocks is cached in
    memory. Use it in a `with` statement, or `close` it.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        documents: DocumentStore,
        cache: LandmarkCache,
        options: CacheOptions,
        *,
        growing: bool,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = cache
        self._documents = documents
        self._options = options
        self._growing = growing
        self._interrupted = False
        self._mark = model_mark(model)  # of the model whose fingerprint was compared
        self._ranking: tuple[int, Ranking] | None = None  # and the tokens read when it was made
        self._rereading: tuple[int, Rereading] | None = None  # the same

    def __repr__(self) -> str:
        return f"Context(path={str(self.path)!r}, documents={len(self.documents)}, tokens={self.tokens:,})"

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Unpack[CacheOptions],
    ) -> "Context":
        """Makes an empty context in the folder `path`, open for writing.

        `model` is a converted model, `tokenizer` its own (by default the one saved beside it). `options`: see `open`.
        Raises ValueError if `path` exists, or for settings under which nothing would be kept.
        """
        if (url := url_of(_checked(path))) is not None:
            raise ValueError(
                f"{url} is on another file system, where a context that is read in sequence cannot be: read documents"
                " apart (landmark.Collection, landmark read --apart), or give a folder of this machine"
            )
        folder = path_of(path)
        tokenizer = compatibility.tokenizer_of(model) if tokenizer is None else tokenizer
        writer = create(folder, *beginning(model, tokenizer, **options))
        return cls._opened(writer, model, tokenizer, options)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        write: bool = False,
        verify: Verification = "landmarks",
        progress: Progress | None = None,
        **options: Unpack[CacheOptions],
    ) -> "Context":
        """Opens the context in the folder `path` at its newest commit; with `write` it can grow.

        A collection opens for reading, too: see `Collection`, which changes it. That may lie at a URL of another file
        system, and is then fetched first.

        `verify` is what is checked before it opens: the "manifest" and the sizes of all files; also all "landmarks",
        the keys that every query is compared with; or "all" committed bytes, as `landmark contexts verify` does.
        Tokens, texts and blocks are checked in any case when they are first read: `generate` or `read` raise ValueError
        where they meet damage, naming the file, and the block and layer where it is in one.

        `options` are keywords of `LandmarkCache`: `host_budget` and `device_budget` bound the bytes of blocks in memory
        ("256MB"; host_budget is 256 MB by default), `index` is the search of landmark keys, `retrieve`, `selection` and
        `local_blocks` decide which blocks are read (by default as when the documents were). `kv_dtype="int8"` is for a
        new context, which keeps its blocks so; one that keeps them otherwise is refused, and without it any opens.

        On a GPU all blocks are brought to its memory now, if they fit `device_budget`, by default if a quarter of the
        memory stays free; `progress` is called with the bytes that were brought, and with all. Branches share them, and
        decode by graphs. What does not fit, or is open for writing, is read through a cache of `device_budget` bytes.

        Raises ValueError if this is no context, if another process writes to it, if it was read by another model,
        other adapters or scaling of them, another tokenizer or block size (naming the difference), or if it is damaged.
        """
        check_verification(verify)
        folder = (local_manifest if write else local_copy)(_checked(path))
        tokenizer = compatibility.tokenizer_of(model) if tokenizer is None else tokenizer

        def opened() -> Context:
            snapshot = open_writer(folder) if write else open_snapshot(folder)
            try:
                compatibility.check_header(snapshot, model, tokenizer)
                snapshot.checks_landmarks = verify != "manifest"
                if verify == "all":
                    check_snapshot(snapshot)
                return cls._opened(snapshot, model, tokenizer, options, progress)
            except BaseException:
                if isinstance(snapshot, Writer):
                    snapshot.close()
                raise

        return mending(opened)

    @classmethod
    def _opened(
        cls,
        snapshot: Snapshot,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        options: CacheOptions,
        progress: Progress | None = None,
    ) -> "Context":
        cache = cache_of(snapshot, model, progress=progress, **options)
        return cls(model, tokenizer, DocumentStore(snapshot), cache, options, growing=isinstance(snapshot, Writer))

    # Contents.

    @property
    def path(self) -> Path:
        """Its folder; of a fork in memory, that of the context it came from."""
        return self._documents.snapshot.path

    @property
    def header(self) -> dict[str, Any]:
        """Settings and fingerprint of the model that read it, as JSON values."""
        return self._documents.snapshot.header

    @property
    def blocks(self) -> int:
        """Number of committed blocks."""
        return self._documents.snapshot.blocks

    @property
    def documents(self) -> list[Document]:
        """Names and sizes of the documents, in the order in which they were added."""
        return self._documents.documents

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents; the model has read the first `tokens_read` of them."""
        return self._documents.tokens

    @property
    def tokens_read(self) -> int:
        """Number of tokens that the model has read."""
        read_so_far = self.cache.tokens_read()
        return read_so_far[0] if read_so_far else 0

    def text(self, document: Document) -> str:
        """The text of a document."""
        return self._documents.text(document)

    def passages(self, spans: Iterable[Span], limit: int) -> list[Source]:
        """The texts of the first `limit` of `spans`, blocks or other ranges of tokens, each by document."""
        return self._documents.sources(spans, limit)

    def offsets(self, document: Document) -> np.ndarray:
        """The first and last character of each token of a document, uint32 `[n,2]`; Damage if they are damaged."""
        first = document.first_token
        return self._documents.slice(first, first + document.tokens)[:, 1:]

    # Growing.

    def append(self, text: str, name: str = "text", *, progress: Callable[[int], object] | None = None) -> None:
        """Adds a document and prefills it; `progress` is called with the number of tokens of each chunk.

        Commits every half minute: after a crash `read` goes on from there. Raises ValueError for an empty text, or a
        context that is not open for writing.
        """
        self.add([(name, text)])
        self.read(progress=progress)

    def missing(self, documents: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of `documents`, pairs of a name and a text, that the context lacks, each once.

        Documents are the same if their names and their texts are, by SHA-256. Raises ValueError for another text under
        a name that is in it, and for two texts under one name.
        """
        return self._documents.missing(documents)

    def name_for(self, name: str, text: str) -> str:
        """A free name for a text without one: the first of `name`, `name 2`, `name 3` ... that no document has.

        A text that the context holds under one of these names keeps it.
        """
        return self._documents.name_for(name, text)

    def add(self, documents: Iterable[tuple[str, str]]) -> None:
        """Adds documents, pairs of a name and a text, in one commit; `read` prefills them.

        A document that is given twice is added once; one that the context has already is added again, unless `missing`
        left it out. Raises ValueError as `append` does, and for two texts under one name, before anything is added.
        """
        self._check_growing()
        documents = list(documents)
        for name, text in documents:
            check_document(name, text)
        documents, empty = distinct(documents), self._documents.tokens == 0
        for number, (name, text) in enumerate(documents):
            tokens = tokenized(self.tokenizer, text, first=empty and number == 0)
            self._documents.add(name, text, tokens)
        if documents:
            self._commit()

    def read(self, *, progress: Callable[[int], object] | None = None) -> None:
        """Prefills all documents that were not read yet, and commits; continues after an interrupted call."""
        self._check_growing()
        if self.tokens_read == self.tokens:
            return
        self._interrupted = True  # until the end: layers that were stopped in the middle of a chunk differ
        committed = time.monotonic()
        while (start := self.tokens_read) < self.tokens:
            ids = self._documents.slice(start, min(self.tokens, start + _CHUNKS * self.cache.chunk_tokens))[:, 0]
            read(self.model, torch.from_numpy(ids.astype("int64")), self.cache, progress=progress)
            if time.monotonic() - committed > COMMIT_SECONDS:
                self._commit()
                committed = time.monotonic()
        self._commit()
        self._interrupted = False

    def _commit(self) -> None:
        writer = self._documents.writer
        if writer is not None:
            ropes: Any = self.model.base_model.landmark_ropes
            self.cache.settle(ropes)
            writer.commit(*(cache_state(self.cache) if self.tokens_read else ({}, {})))
            return_freed_pages()

    def check(self) -> None:
        """Raises ValueError where reading was interrupted, and for a model that changed since it was opened."""
        self._check_whole()
        self._check_model()

    def _check_whole(self) -> None:
        if self._interrupted:
            raise ValueError(f"{self.path}: reading was interrupted; open it again, it is as it was committed last")

    def _check_model(self) -> None:
        """Raises ValueError if the model changed since its last check: weights trained, or adapters switched."""
        if (mark := model_mark(self.model)) != self._mark:
            compatibility.check_header(self._documents.snapshot, self.model, self.tokenizer)
            self._mark = mark

    def _check_growing(self) -> None:
        self._check_whole()
        if not self._growing:
            raise ValueError(f"{self.path} is open for reading: open it with write=True, or fork it")
        self._check_model()

    # Asking.

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        temperature: float = 0.0,
        sources: int = 5,
        write: Callable[[str], object] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Decodes a continuation of `prompt`, literally, after all documents; the context does not change.

        Greedy, or sampled at a `temperature` above 0; `write` gets the text word by word. `stop` is called after each
        token and ends the answer when it returns True. The answer lists passages of the first `sources` blocks, as
        `ranked` has them. Raises ValueError for a prompt that is empty or no text, a temperature other than 0 or 0.001
        to 1000, less than one token to generate, and a model that changed since it was opened.
        """
        self.check()
        check_limit(sources)
        ids = encode(self.tokenizer, prompt, continues=self.tokens > 0).ids
        if not len(ids):
            raise ValueError("the prompt is empty: give the text to continue")
        branch = self.cache.fork()
        branch.start_trace()
        streamer = None if write is None else TextTo(self.tokenizer, write)
        new = answer(
            self.model,
            ids,
            branch,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            streamer=streamer,
            stop=stop,
        )
        text: Any = self.tokenizer.decode(new, skip_special_tokens=True)
        trace = branch.trace()
        passages = self._documents.sources(self.ranked(trace), sources) if sources else []
        return Answer(prompt, text, new, passages, branch.traffic, trace)

    def ranked(self, trace: Trace) -> list[Span]:
        """The blocks that a question and its answer opened, what the question asked for first (`Ranking`).

        `trace` is that of an `Answer`.
        """
        if self._ranking is None or self._ranking[0] != self.tokens_read:
            self._ranking = self.tokens_read, Ranking.after(self.model, self.tokenizer, self.cache)
        return self._ranking[1].spans(trace)

    def best_blocks(self, question: str, count: int) -> list[Span]:
        """The `count` blocks that rank highest for a question, to be read again in front of it (docs/retrieval.md).

        They are fewer where fewer have words. Raises ValueError for more than a chunk has room for, an empty question,
        where nothing was read, and for a model whose heads that rank blocks are not known.
        """
        self.check()
        check_reread(count, self.cache)
        if not question.strip():
            raise ValueError(f"the question is {question!r}: give some words")
        if self._rereading is None or self._rereading[0] != self.tokens_read:
            self._rereading = self.tokens_read, Rereading(self.model, self.tokenizer, self.cache)
        return spans_with_words(self._documents.sources_of, self._rereading[1].spans(question), count)

    def fork(self, path: str | PathLike[str] | None = None) -> "Context":
        """A copy that shares what was read so far and grows on its own: many users, one book.

        With a `path`, a context on disk of hard links to the segment files, open for writing; it holds what was
        committed. Without, a fork in memory that can grow and answer, and ends with the process. Raises ValueError if
        `path` exists, or lies on another file system.
        """
        if path is not None:
            if is_collection(self.path):
                raise ValueError(
                    f"{self.path} is a collection: make another one that shares its documents, with"
                    " Collection.create(..., share=[...])"
                )
            if self._growing and self._documents.writer is None:
                raise ValueError("this fork is in memory, with no files of its own: fork the context to a path instead")
            fork(self.path, path_of(_checked(path)))
            return Context.open(path, self.model, self.tokenizer, write=True, **self._options)
        self.check()
        documents, cache = self._documents.fork(), self.cache.fork()
        return Context(self.model, self.tokenizer, documents, cache, self._options, growing=True)

    def close(self) -> None:
        """Releases the writer's lock; what was not committed is discarded."""
        if self._documents.writer is not None:
            self._documents.writer.close()

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(path: Any) -> str | PathLike[str]:
    """A path or URL; raises ValueError for what is none."""
    if not isinstance(path, (str, PathLike)):
        raise ValueError(f"path is {path!r}: give the folder of a context")
    return path
