"""A document that is read apart: from an empty memory, on a block grid of its own, to the end of a block."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from landmark.contexts import disk
from landmark.contexts.caches import cache_of
from landmark.contexts.collection_manifest import Member, document_key
from landmark.contexts.context import Context
from landmark.contexts.disk import Folder
from landmark.contexts.documents import DocumentStore, tokenized
from landmark.contexts.manifest import Layout, has_manifest
from landmark.contexts.segments import encode_text, text_digest
from landmark.contexts.writer import create, open_writer
from landmark.hf.block_search import filler
from landmark.settings import LandmarkSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from landmark.hf.cache import CacheOptions

NAME = "document"  # in its own context; a collection has the name that it goes by


@dataclass(frozen=True)
class UnreadDocument:
    """A document before it is read: its entry in the manifest, its text and its tokens, uint32 `[n,3]`."""

    member: Member
    text: str
    tokens: np.ndarray


@dataclass(frozen=True)
class ApartReader:
    """Reads documents as those of a collection with this `header` and `layout` are read, by any process."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    header: dict[str, Any]
    layout: Layout
    allow_nonfinite: bool = False

    def tokenized(self, name: str, text: str, progress: Callable[[int], object] | None = None) -> UnreadDocument:
        """A document to `read`; `progress` is called with 0 after each piece of its text."""
        data = encode_text(name, text)
        sha256 = text_digest(data)
        tokens = tokenized(self.tokenizer, text, first=True, progress=progress)
        blocks = -(-len(tokens) // self.layout.block_size)
        key = document_key(sha256, self.header, self.layout)
        return UnreadDocument(Member(name, key, sha256, len(tokens), blocks, len(text), len(data)), text, tokens)

    def read(
        self, documents: Folder, document: UnreadDocument, progress: Callable[[int], object] | None = None
    ) -> None:
        """Reads a document into its folder among those of others, or the rest of it."""
        kept = asdict(LandmarkSettings.from_dict(self.header["settings"]).reading)
        settings = cast("CacheOptions", kept | {"allow_nonfinite": self.allow_nonfinite})
        context = DocumentContext.reading(
            documents, document.member.key, self.header, self.layout, self.model, self.tokenizer, settings
        )
        with closing(context):
            context.take(document)
            context.read(progress=progress)


class DocumentContext(Context):
    """The context of one document, all of whose blocks lie in memory and none in the local window.

    Line ends complete the last block, as they do for a search: every token of the document can then be looked up.
    Nothing in it depends on what else a collection holds.
    """

    @classmethod
    def reading(
        cls,
        documents: Folder,
        key: str,
        header: dict[str, Any],
        layout: Layout,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        options: "CacheOptions",
    ) -> "DocumentContext":
        """The context `key` in a folder: to go on with, where an interrupted reading left one, or a new one."""
        place = documents / key
        begun = place.stat() is not None and has_manifest(disk.open_inner(place))
        writer = open_writer(disk.open_inner(place)) if begun else create(place.path, header, layout)
        try:
            cache = cache_of(writer, model, **options)
            return cls(model, tokenizer, DocumentStore(writer), cache, options, growing=True)
        except BaseException:
            writer.close()
            raise

    def take(self, document: UnreadDocument) -> None:
        """Adds the document, if that was not done yet."""
        if not self.tokens:
            ends = self._ends(len(document.tokens), len(document.text))
            self._documents.add(NAME, document.text, np.concatenate((document.tokens, ends)))
            self._commit()

    def _ends(self, tokens: int, end: int) -> np.ndarray:
        """The line ends that complete the last block of so many tokens, uint32 `[n,3]`; they cover no character."""
        count = -tokens % self.cache.settings.block_size
        found = np.full((count, 3), end, np.uint32)
        found[:, 0] = filler(self.tokenizer)
        return found

    def _commit(self) -> None:
        if self.tokens_read == self.tokens:
            ropes: Any = self.model.base_model.landmark_ropes
            self.cache.settle(ropes, local_blocks=0)
        super()._commit()
