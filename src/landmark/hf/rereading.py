"""Blocks to read again: those that rank highest for a question, so that their words stand right in front of it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from landmark.hf.block_search import BlockSearch
from landmark.hf.cache import LandmarkCache
from landmark.hf.retrieval_heads import BlockRanker, RetrievalHeads
from landmark.hf.trace import Span
from landmark.limits import is_whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

USUAL = 5  # blocks: those that answered most questions (docs/retrieval.md)


class Rereading:
    """Ranks the blocks of what `cache` has read, one text, for questions, by `heads`; the cache stays as it is.

    Opening a block is a matter of each head, and few heads of a model look for what a question is about. Where these
    are known, what they find can be read again, by all heads and layers (docs/retrieval.md).

    Raises ValueError for heads that the model has not, where none are known, and for a cache that has read nothing or
    does not keep all blocks.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        cache: LandmarkCache,
        heads: RetrievalHeads | None = None,
    ) -> None:
        heads = RetrievalHeads.of_model(model.config, heads)
        self._ranker = BlockRanker(BlockSearch(model, tokenizer, cache.fork()), tokenizer, heads)
        self._size = cache.settings.block_size
        self._tokens = sum(cache.tokens_read())

    def spans(self, question: str) -> list[Span]:
        """All blocks, the best for the question first; `weight` is the score. A long question's end decides."""
        scores = self._ranker.scores(question, whole=False)
        order: list[int] = scores.argsort(descending=True, stable=True).tolist()
        return [
            Span(block, block * self._size, min((block + 1) * self._size, self._tokens), float(scores[block]))
            for block in order
        ]


def in_text_order(spans: Iterable[Span]) -> list[Span]:
    """The spans by their place in the text, neighbours joined to one that has the number and weight of the first."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if found and found[-1].stop == span.start:
            before = found.pop()
            span = Span(before.block, before.start, span.stop, before.weight)
        found.append(span)
    return found


def read_first(again: Iterable[Span], opened: Iterable[Span]) -> list[Span]:
    """The spans that were read `again`, with the weights that they have in `opened`, then the others of these."""
    opened = list(opened)
    weights = {span.block: span.weight for span in opened}
    first = {span.block: replace(span, weight=weights.get(span.block, 0.0)) for span in again}
    return [*first.values(), *(span for span in opened if span.block not in first)]


def usual_reread(config: "PretrainedConfig", cache: LandmarkCache, heads: RetrievalHeads | None = None) -> int:
    """How many blocks a conversation reads again, where nobody says.

    0 where no heads are known, where not all blocks are kept, and at true positions: there the passages use up
    positions.
    """
    reading, known = cache.settings.reading, heads is not None or RetrievalHeads.known(config) is not None
    able = known and reading.retrieve and reading.max_blocks is None and reading.positions == "stingy"
    return min(USUAL, most_reread(cache)) if able else 0


def most_reread(cache: LandmarkCache) -> int:
    """The most blocks that can be read again: as many as a chunk has room for."""
    return cache.chunk_tokens // cache.settings.block_size


def check_reread(count: Any, cache: LandmarkCache) -> None:
    """Raises ValueError for what is no number of blocks, more blocks than a chunk has room for, and blocks not kept."""
    if not is_whole(count, 0):
        raise ValueError(f"reread is {count!r}: give the number of blocks to read again, 0 or more")
    if count > (most := most_reread(cache)):
        raise ValueError(f"reread is {count}: give at most {most}, as many blocks as a chunk has room for")
    if count and not cache.settings.reading.retrieve:
        raise ValueError(f"reread is {count} and retrieve is 0, so that no blocks are kept: give retrieve 1 or more")
    if count and (kept := cache.settings.reading.max_blocks) is not None:
        raise ValueError(f"reread is {count} and max_blocks is {kept}, so that blocks are dropped: give one of them")
