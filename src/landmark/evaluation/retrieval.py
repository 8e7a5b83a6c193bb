"""Retrieval of passages: landmarks and mean keys of a model, BM25 and a dense encoder on the same passages."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from landmark.evaluation.mean_keys import MeanKeyStorage
from landmark.evaluation.passages import TASKS, RetrievalTasks
from landmark.evaluation.samples import share_interval
from landmark.hf import LandmarkCache, read
from landmark.hf.block_search import BlockSearch, SearchOf
from landmark.hf.retrieval_heads import (
    BACKGROUND,
    POOLINGS,
    BlockRanker,
    RetrievalHeads,
    landmark_heads,
    pooled,
    searchable_heads,
)
from landmark.hf.sentence_encoder import SentenceEncoder
from landmark.hf.tokenizer import EncodedText, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Keys = Literal["landmarks", "mean-keys"]
CUTS = (1, 5, 10)
TOGETHER = (1, 2, 4, 8)  # heads that are tried together
_RESAMPLES = 2000

Scores = Callable[[str], Tensor]
"""The scores [P] of all passages for a query."""


class PassageReader:
    """The texts of `tasks`, read once by a model, whose landmarks and mean keys score their passages.

    A passage has the score of its best block, of those of which it has half or more and the one of which it has most.
    `encoded` are the texts as tokens; `progress` is called with the number of tokens of each chunk.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        tasks: RetrievalTasks,
        encoded: Sequence[EncodedText],
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        self._config = model.config
        self._tokenizer = tokenizer
        self._means = {layer: MeanKeyStorage.of_one_text() for layer in range(model.config.num_hidden_layers)}
        cache = LandmarkCache(model.config, storage=self._means)
        read(model, torch.cat([text.ids for text in encoded]), cache, progress=progress)
        self._search = BlockSearch(model, tokenizer, cache)
        middles = [[(first + last) / 2 for first, last in text.offsets] for text in encoded]
        self._members = _members(tasks, middles, cache.settings.block_size)

    def scores(self, heads: RetrievalHeads, keys: Keys = "landmarks") -> Scores:
        """The scores of passages by the weights of `heads`."""
        ranker = BlockRanker(self._search, self._tokenizer, heads, self._search_of(keys))
        return lambda query: self._of_passages(ranker.scores(query))

    def choose(self, tasks: RetrievalTasks, keys: Keys, progress: Callable[[int], Any]) -> RetrievalHeads:
        """The heads and the pooling with the best mean reciprocal rank on `tasks`, those of the reader.

        Each head alone is tried with each pooling, and the best 1, 2, 4 and 8 of a pooling together. So that memory
        does not grow with queries times heads times blocks, every query is scored twice; `progress` is called with 1
        after each time.
        """
        heads = searchable_heads(self._config) if keys == "landmarks" else landmark_heads(self._config)
        background = torch.stack([self._weights(text, heads, keys) for text in BACKGROUND]).mean(0)

        def ranks(of_query: Callable[[Tensor], Tensor]) -> Tensor:
            """Ranks [Q,...] of the right passages by what is made of the weights of each query."""
            found = []
            for query in tasks.queries:
                scores = self._of_passages(of_query(self._weights(query.text, heads, keys) - background))
                found.append(_rank(scores, query.passage))
                progress(1)
            return torch.stack(found)

        alone = ranks(lambda weights: weights)
        orders = []
        for of_heads in alone.unbind(1):
            quality = [-_quality(one, tasks) for one in of_heads.unbind(1)]
            orders.append(np.argsort(quality, kind="stable").tolist())
        tried = [(number, order[:count]) for number, order in enumerate(orders) for count in TOGETHER]
        together = ranks(lambda weights: torch.stack([weights[number, places].mean(0) for number, places in tried]))
        quality = [_quality(one, tasks) for one in together.unbind(1)]
        number, places = tried[quality.index(max(quality))]
        return RetrievalHeads(tuple(heads[place] for place in places), POOLINGS[number])

    def _weights(self, query: str, heads: list[tuple[int, int]], keys: Keys) -> Tensor:
        """Weights [3,heads,N] of blocks for a query, by pooling; on the CPU."""
        ids = encode(self._tokenizer, query, continues=True).ids
        scores = self._search.scores(ids, {layer for layer, _ in heads}, self._search_of(keys))
        every = torch.stack([scores[layer][head] for layer, head in heads])
        return torch.stack([pooled(every, pooling) for pooling in POOLINGS]).cpu()

    def _search_of(self, keys: Keys) -> SearchOf:
        if keys == "mean-keys":
            return lambda layer, search: self._means[layer].search(search)
        return lambda layer, search: search

    def _of_passages(self, blocks: Tensor) -> Tensor:
        """Scores [...,P] of passages from those of blocks [...,N]."""
        return torch.stack([blocks[..., own].amax(-1) for own in self._members], -1)


def _members(tasks: RetrievalTasks, middles: list[list[float]], block_size: int) -> list[Tensor]:
    """The blocks of each passage, from the character in the middle of each token of each text."""
    own = []
    for document, of_text in enumerate(middles):
        numbers = [n for n, passage in enumerate(tasks.passages) if passage.document == document]
        ends = [tasks.passages[n].last for n in numbers]
        own += [numbers[min(place, len(numbers) - 1)] for place in np.searchsorted(ends, of_text, "right").tolist()]
    shared = np.zeros((-(-len(own) // block_size), len(tasks.passages)))
    np.add.at(shared, (np.arange(len(own)) // block_size, own), 1)
    halves = 2 * shared >= shared.sum(1, keepdims=True)
    halves[shared.argmax(0), np.arange(len(tasks.passages))] = True
    return [torch.from_numpy(np.flatnonzero(column)) for column in halves.T]


def dense(passages: Sequence[str]) -> Scores:
    """Cosines of vectors of all-MiniLM-L6-v2; raises ValueError where its package is missing."""
    encoder = SentenceEncoder()
    vectors = encoder.encode(list(passages))
    return lambda query: vectors @ encoder.encode([query])[0]


# Figures.


@dataclass(frozen=True)
class Ranked:
    """Ranks [Q] from 1 of the right passages of all queries by one method, and seconds of processor time for a query.

    A passage with the same score as others stands behind all of them.
    """

    method: str
    ranks: np.ndarray
    seconds: float


def rank(method: str, tasks: RetrievalTasks, scores: Scores, progress: Callable[[int], Any]) -> Ranked:
    """Ranks the passages for every query; `progress` is called with 1 after each."""
    started, found = time.process_time(), []
    for query in tasks.queries:
        found.append(scores(query.text))
        progress(1)
    seconds = (time.process_time() - started) / len(tasks.queries)
    return Ranked(method, ranks_of(torch.stack(found), tasks), seconds)


def ranks_of(scores: Tensor, tasks: RetrievalTasks) -> np.ndarray:
    """Ranks [Q] of the right passages in scores [Q,P]."""
    ranked = zip(scores, tasks.queries, strict=True)
    return torch.stack([_rank(of_query, query.passage) for of_query, query in ranked]).numpy()


def _rank(scores: Tensor, passage: int) -> Tensor:
    """Ranks [...] of a passage in scores [...,P]."""
    return (scores >= scores[..., passage : passage + 1]).sum(-1)


def _quality(ranks: Tensor, tasks: RetrievalTasks) -> float:
    """The mean over tasks of the mean reciprocal rank, from ranks [Q]."""
    return float(np.mean([(1 / ranks.numpy()[_of_task(tasks, task)]).mean() for task in TASKS]))


def figures(ranked: Ranked, tasks: RetrievalTasks) -> list[dict[str, Any]]:
    """Recall at 1, 5 and 10 and mean reciprocal rank of each task, each with the ends of its 95 % interval.

    Wilson's interval for shares; for the mean reciprocal rank the percentiles of 2,000 resamplings of the queries.
    """
    return [_figures(task, ranked, ranked.ranks[_of_task(tasks, task)], len(tasks.passages)) for task in TASKS]


def _figures(task: str, ranked: Ranked, ranks: np.ndarray, passages: int) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "method": ranked.method, "queries": len(ranks), "passages": passages}
    for cut in CUTS:
        right = int((ranks <= cut).sum())
        row |= {f"recall@{cut}": right / len(ranks), f"recall@{cut}_interval": list(share_interval(right, len(ranks)))}
    resampled = np.random.default_rng(0).choice(1 / ranks, (_RESAMPLES, len(ranks))).mean(1)
    row |= {"mrr": float((1 / ranks).mean()), "mrr_interval": np.quantile(resampled, (0.025, 0.975)).tolist()}
    return row | {"ms_per_query": 1000 * ranked.seconds}


def _of_task(tasks: RetrievalTasks, task: str) -> np.ndarray:
    return np.array([query.task == task for query in tasks.queries])
