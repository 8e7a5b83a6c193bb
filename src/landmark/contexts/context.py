"""`Context`: texts that a model has read, kept on disk, reopened in a moment and asked again and again."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from landmark.contexts import compatibility
from landmark.contexts.documents import DocumentStore, Source, distinct
from landmark.contexts.folder import fork
from landmark.contexts.segments import Document
from landmark.contexts.snapshot import Snapshot, open_reader
from landmark.contexts.writer import Writer, create, open_writer
from landmark.hf import LandmarkCache, read
from landmark.hf.cache import CacheOptions
from landmark.hf.fingerprint import model_mark
from landmark.hf.reader import TextTo, answer
from landmark.hf.serialization import cache_state
from landmark.hf.tokenizer import encode
from landmark.process_memory import return_freed_pages
from landmark.store.base import Traffic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMIT_SECONDS = 30.0
_CHUNKS = 8  # read between two looks at the clock


@dataclass(frozen=True)
class Answer:
    """What was said, as text and as tokens.

    `sources` are the pieces of documents that were opened for it, most read first, `traffic` what was read for it.
    """

    text: str
    ids: list[int]
    sources: list[Source]
    traffic: Traffic


class Context:
    """Texts that a model has read. Made by `create`, `open` and `fork`; use it in a `with` statement, or `close` it.

    On disk a context is a folder. One process may write to it while others read; what was committed survives any
    crash (docs/reliability.md). Keys and values stay on disk, and those of few blocks in memory; landmark keys are
    loaded.
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

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Unpack[CacheOptions],
    ) -> "Context":
        """A new, empty context in the folder `path`, open for writing.

        `model` is a converted model, `tokenizer` its own (by default the one saved beside it). `options`: see `open`.
        Raises ValueError if `path` exists, or for settings under which nothing would be kept.
        """
        tokenizer = compatibility.tokenizer_of(model) if tokenizer is None else tokenizer
        LandmarkCache(model.config, **options)  # tells of settings that mean nothing before anything is made
        header, layout = compatibility.header(model, tokenizer), compatibility.layout(model)
        compatibility.check_memory(header, layout, model.config, **options)
        writer = create(Path(path), header, layout)
        return cls._opened(writer, model, tokenizer, options)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        write: bool = False,
        **options: Unpack[CacheOptions],
    ) -> "Context":
        """The context in the folder `path`, as it was committed last; `write` lets it grow.

        `options` are keywords of `LandmarkCache`: `host_budget` and `device_budget` bound the blocks kept in memory
        ("256MB"; host_budget is 256 MB by default), `index` says how landmarks are searched, `retrieve` and `selection`
        which blocks are opened (by default as when it was read).

        Raises ValueError if this is no context, if another process writes to it, if it was read by another model,
        other adapters or scaling of them, another tokenizer or block size (naming the difference), or if it is damaged.
        """
        tokenizer = compatibility.tokenizer_of(model) if tokenizer is None else tokenizer
        snapshot = open_writer(Path(path)) if write else open_reader(Path(path))
        try:
            compatibility.check_header(snapshot, model, tokenizer)
            return cls._opened(snapshot, model, tokenizer, options)
        except BaseException:
            if isinstance(snapshot, Writer):
                snapshot.close()
            raise

    @classmethod
    def _opened(
        cls, snapshot: Snapshot, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", options: CacheOptions
    ) -> "Context":
        writer = snapshot if isinstance(snapshot, Writer) else None
        cache = compatibility.cache_of(snapshot, model, **options)
        return cls(model, tokenizer, DocumentStore(snapshot, writer), cache, options, growing=writer is not None)

    # What is in it.

    @property
    def path(self) -> Path:
        """Its folder; of a fork in memory, that of the context it came from."""
        return self._documents.snapshot.path

    @property
    def header(self) -> dict[str, Any]:
        """What it remembers of the model that read it."""
        return self._documents.snapshot.header

    @property
    def blocks(self) -> int:
        """Blocks that were committed."""
        return self._documents.snapshot.blocks

    @property
    def documents(self) -> list[Document]:
        """Names and sizes of the documents, in the order in which they came."""
        return self._documents.documents

    @property
    def tokens(self) -> int:
        """Tokens of all documents; `tokens_read` of them have been read by the model."""
        return self._documents.tokens

    @property
    def tokens_read(self) -> int:
        """Tokens that the model has read."""
        read_so_far = self.cache.tokens_read()
        return read_so_far[0] if read_so_far else 0

    def text(self, document: Document) -> str:
        """The text of one of the documents."""
        return self._documents.text(document)

    # Growing.

    def append(self, text: str, name: str = "text", *, progress: Callable[[int], Any] | None = None) -> None:
        """Adds one document and reads it; `progress` is called with numbers of tokens.

        What was read is committed every half minute: after a crash `read` goes on from there. Raises ValueError for an
        empty text, or a context that is not open for writing.
        """
        self.add([(name, text)])
        self.read(progress=progress)

    def missing(self, documents: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of the documents, pairs of a name and a text, that are not in it, each once.

        Documents are the same if their names and their texts are, by SHA-256. Raises ValueError for another text under
        a name that is in it, and for two texts under one name.
        """
        return self._documents.missing(documents)

    def name_for(self, name: str, text: str) -> str:
        """A name for a text that has none: `name`, `name 2`, `name 3` and so on, the first that no document has.

        A text that is in it under one of these names keeps that.
        """
        return self._documents.name_for(name, text)

    def add(self, documents: Iterable[tuple[str, str]]) -> None:
        """Adds documents, pairs of a name and a text, in one commit, to be read by `read`.

        A document that is given twice is added once. Raises ValueError where `append` does, and for two texts under one
        name, before anything is added.
        """
        self._check_growing()
        documents, empty = distinct(documents), self._documents.tokens == 0
        for name, text in documents:
            if not text.strip():
                raise ValueError(f"document {name!r} is empty: there is nothing to read in it")
        for number, (name, text) in enumerate(documents):
            tokens = compatibility.tokenized(self.tokenizer, text, first=empty and number == 0)
            self._documents.add(name, text, tokens)
        if documents:
            self._commit()

    def read(self, *, progress: Callable[[int], Any] | None = None) -> None:
        """Reads all documents that were not read yet, and commits; goes on where an earlier call was interrupted."""
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

    def _check_whole(self) -> None:
        if self._interrupted:
            raise ValueError(f"{self.path}: reading was interrupted; open it again, it is as it was committed last")

    def _check_model(self) -> None:
        """Raises ValueError if the model changed since it was last compared: trained on, or other adapters in use."""
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
        write: Callable[[str], Any] | None = None,
    ) -> Answer:
        """Continues `prompt`, word for word, as if it stood behind all that was read; the context does not change.

        The most likely tokens, or samples at a `temperature` above 0; `write` gets the text word by word. The answer
        lists the `sources` blocks that the prompt and the answer opened most. Raises ValueError for an empty prompt, a
        negative temperature, less than one token to generate, and a model that is not as it was when it was opened.
        """
        self._check_whole()
        self._check_model()
        ids = encode(self.tokenizer, prompt, continues=self.tokens > 0).ids
        if not len(ids):
            raise ValueError("the prompt is empty: say what is to be continued")
        branch = self.cache.fork()
        branch.start_trace()
        streamer = None if write is None else TextTo(self.tokenizer, write)
        new = answer(self.model, ids, branch, max_new_tokens=max_new_tokens, temperature=temperature, streamer=streamer)
        said: Any = self.tokenizer.decode(new, skip_special_tokens=True)
        return Answer(said, new, self._documents.sources(branch.trace().spans(), sources), branch.traffic)

    def fork(self, path: str | PathLike[str] | None = None) -> "Context":
        """A branch that goes on by itself and shares what was read so far: many users, one book.

        With a `path`, a context on disk of its own, made of hard links to the segments, open for writing; only what
        was committed goes into it. Without, a branch in memory that can grow and be asked, gone with the process.
        Raises ValueError if `path` exists, or lies on another file system, where nothing can be shared.
        """
        if path is not None:
            fork(self.path, Path(path))
            return Context.open(path, self.model, self.tokenizer, write=True, **self._options)
        self._check_whole()
        self._check_model()
        documents, cache = self._documents.fork(), self.cache.fork()
        return Context(self.model, self.tokenizer, documents, cache, self._options, growing=True)

    def close(self) -> None:
        """Lets another process write; what was not committed is gone."""
        if self._documents.writer is not None:
            self._documents.writer.close()

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
