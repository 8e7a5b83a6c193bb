"""Ranking of the blocks that an answer opened, so that those which its question asked for come first."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from landmark.hf.cache import LandmarkCache
from landmark.hf.reader import read
from landmark.hf.retrieval_heads import BACKGROUND, RetrievalHeads
from landmark.hf.tokenizer import encode
from landmark.hf.trace import Span, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ranking:
    """Which heads tell where an answer comes from, and what they give each block whatever is asked.

    Most heads look up nothing, and open the beginning of the text or what resembles the question's grammar. So the
    heads that rank passages are counted alone where they are known for this model, and the mean gates that
    sentences about nothing in particular give are subtracted (docs/retrieval.md).
    """

    heads: Collection[tuple[int, int]] | None = None
    background: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def after(cls, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cache: LandmarkCache) -> "Ranking":
        """The ranking for one text that `cache` has read, and no question yet; reads four sentences in forks of it."""
        known = RetrievalHeads.known(model.config)
        heads = None if known is None else known.heads
        background: dict[int, float] = {}
        for sentence in BACKGROUND:
            branch = cache.fork()
            branch.start_trace()
            read(model, encode(tokenizer, sentence, continues=True).ids, branch)
            for block, weight in branch.trace().weights(heads=heads).items():
                background[block] = background.get(block, 0.0) + weight / len(BACKGROUND)
        return cls(heads, background)

    def spans(self, trace: Trace) -> list[Span]:
        """The opened blocks of the first row of `trace`, by what they got beyond the background, falling.

        `weight` is the mean gate in the heads that count.
        """
        spans = trace.spans(heads=self.heads)
        return sorted(spans, key=lambda span: self.background.get(span.block, 0.0) - span.weight)
