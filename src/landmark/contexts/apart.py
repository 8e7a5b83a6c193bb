"""A document that is read apart: from an empty memory, on a block grid of its own, to the end of a block."""

from typing import TYPE_CHECKING, Any

import numpy as np

from landmark.contexts import compatibility, disk
from landmark.contexts.context import Context
from landmark.contexts.disk import Folder
from landmark.contexts.documents import DocumentStore
from landmark.contexts.manifest import Layout, has_manifest
from landmark.contexts.writer import create, open_writer
from landmark.hf.block_search import filler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from landmark.hf.cache import CacheOptions

NAME = "document"  # in its own context; a collection has the name that it goes by


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
            cache = compatibility.cache_of(writer, model, **options)
            return cls(model, tokenizer, DocumentStore(writer), cache, options, growing=True)
        except BaseException:
            writer.close()
            raise

    def add_text(self, text: str) -> None:
        """Adds the text, if that was not done yet."""
        if not self.tokens:
            tokens = compatibility.tokenized(self.tokenizer, text, first=True)
            self._documents.add(NAME, text, np.concatenate((tokens, self._ends(len(tokens), len(text)))))
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
