"""Search of what was read by landmark scores alone: a query is read, compared with every landmark, and taken back."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from landmark.hf.cache import LandmarkCache
from landmark.hf.reader import read
from landmark.hf.tokenizer import encode
from landmark.memory import LayerMemory
from landmark.memory.selection import Retrieval

SearchOf = Callable[[int, Retrieval], Retrieval]
"""The search to score with in a layer, from the one that the layer does."""


def filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that completes an unfinished block: a line end."""
    return int(encode(tokenizer, ".\n", continues=True).ids[-1])


class BlockSearch:
    """The landmark scores of queries with all that `cache` has read, one text; `cache` is used up.

    Every block lies in memory, the unfinished one too: line ends complete it. So a query stands at the beginning of a
    block, whatever was read last, and sees itself and what it opens. A query that was interrupted changes no other.

    Raises ValueError for a cache that has read nothing, or that does not keep all blocks.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: LandmarkCache) -> None:
        tokens, size = sum(cache.tokens_read()), cache.settings.block_size
        if not tokens:
            raise ValueError("nothing was read yet: there is no text to search")
        if not cache.settings.reading.retrieve:
            raise ValueError("retrieve is 0: no blocks are kept that could be searched; give 1 or more")
        if (most := cache.settings.reading.max_blocks) is not None:
            raise ValueError(f"max_blocks is {most}: blocks that were dropped cannot be searched; leave it out")
        self.blocks = -(-tokens // size)  # with text, the unfinished one included
        self._model = model
        self._ends = [filler(tokenizer)] * (size - tokens % size)  # a block of its own where the text ends with one
        self._text = cache.fork()  # to begin anew with where a query was interrupted
        self._ready: LandmarkCache | None = self._completed(cache)
        # A sliding layer forgets what a query pushes out of its window, so that the query cannot be taken back.
        self._forks = not all(isinstance(memory, LayerMemory) for memory in cache.memories)
        self.longest_query = cache.next_chunk  # ordinary tokens

    def _completed(self, cache: LandmarkCache) -> LandmarkCache:
        """The cache with the last block completed and all blocks in memory."""
        read(self._model, self._ends, cache)
        ropes: Any = self._model.base_model.landmark_ropes
        cache.settle(ropes, local_blocks=0)
        return cache

    def scores(
        self, ids: Tensor, layers: Collection[int], search_of: SearchOf = lambda layer, search: search
    ) -> dict[int, Tensor]:
        """Scores [H,T,N] of the query `ids [T]` with the landmarks of all N blocks, by layer.

        They are those by which the layer chooses the blocks that it opens, for ordinary tokens. Raises ValueError for a
        query that is empty or longer than `longest_query`.
        """
        if not 1 <= len(ids) <= self.longest_query:
            raise ValueError(f"the query has {len(ids)} tokens: give 1 to {self.longest_query}")
        ready = self._completed(self._text.fork()) if self._ready is None else self._ready
        self._ready, cache = None, ready.fork() if self._forks else ready
        searched = {layer: cache.memories[layer] for layer in layers}
        found: dict[int, Tensor] = {}

        def score(layer: int, search: Retrieval, query: Tensor) -> None:
            scores = search_of(layer, search).scores(query)[0, :, :, : self.blocks]
            positions = torch.arange(scores.shape[1], device=scores.device)
            found[layer] = scores[:, (positions + 1) % cache.settings.stride != 0]

        for layer, memory in searched.items():
            assert isinstance(memory, LayerMemory), "sliding layers have no landmarks"
            memory.on_search = partial(score, layer)
        read(self._model, ids, cache)
        for memory in searched.values():
            memory.on_search = None  # type: ignore[union-attr]
        if not self._forks:
            cache.crop(-len(ids))
        self._ready = ready
        return found
