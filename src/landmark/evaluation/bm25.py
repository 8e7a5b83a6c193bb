"""Retrieval before reading: BM25 chooses the passages of a text that a model gets to see."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landmark.evaluation.tasks import Prompt
from landmark.hf.tokenizer import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_installed() -> None:
    """Raises ValueError where the package bm25s is missing."""
    if find_spec("bm25s") is None:
        raise ValueError("BM25 needs the package bm25s: pip install 'landmark-attention[eval]'")


def bm25(passages: Sequence[str]) -> Callable[[str], Tensor]:
    """Scores `[passages]` of a query, by bm25s: Lucene's variant, k1 1.5, b 0.75, no English stop words, no stemming.

    Raises ValueError where that package is missing.
    """
    check_installed()
    import bm25s

    words_of: Any = bm25s.tokenize(list(passages), return_ids=False, show_progress=False)
    if not any(words_of):  # bm25s needs a word
        return lambda query: torch.zeros(len(passages))
    index = bm25s.BM25()
    index.index(words_of, show_progress=False)

    def scores(query: str) -> Tensor:
        words: Any = bm25s.tokenize([query], return_ids=False, show_progress=False)[0]
        return torch.from_numpy(index.get_scores(list(words))) if words else torch.zeros(len(passages))

    return scores


class Passages:
    """Keeps of a prompt's text the passages that BM25 ranks highest for its query, at most `tokens` tokens.

    The text is cut into blocks of `block_size` tokens, as landmarks cut it. A passage is a block with its two
    neighbours, so that what a cut divides is whole in one of them. Passages are taken from the best on while all fit;
    they overlap, and each token is taken once. The chosen parts stand in text order, with a blank line between parts
    that were apart. Of equal scores the earlier passage ranks first. Raises ValueError where not even one passage fits.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", tokens: int, block_size: int) -> None:
        check_installed()
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.block_size = block_size
        self._gap = encode(tokenizer, "\n\n", continues=True).ids
        if tokens < (least := 3 * block_size + len(self._gap)):
            raise ValueError(f"rag_tokens is {tokens}, less than a passage of three blocks: give {least} or more")

    def of(self, prompt: Prompt) -> Prompt:
        """The prompt with the chosen passages in the place of its text."""
        context = prompt.text[prompt.context.start : prompt.context.stop]
        blocks = len(range(0, len(context), self.block_size))
        kept = torch.zeros(len(context), dtype=torch.bool)
        for block in self._ranked(context, blocks, prompt.draft.query):
            more = kept.clone()
            more[max(0, block - 1) * self.block_size : (block + 2) * self.block_size] = True
            if int(more.sum()) + self._parts(more) * len(self._gap) <= self.tokens:
                kept = more
            else:
                break
        chosen = self._joined(context, kept)
        before, after = prompt.text[: prompt.context.start], prompt.text[prompt.context.stop :]
        text = torch.cat((before, chosen, after))
        return replace(prompt, text=text, context=range(len(before), len(before) + len(chosen)))

    def _ranked(self, context: Tensor, blocks: int, query: str) -> list[int]:
        """All blocks, those with the best passages first."""
        size = self.block_size
        passages = [str(self.tokenizer.decode(context[max(0, b - 1) * size : (b + 2) * size])) for b in range(blocks)]
        return bm25(passages)(query).argsort(descending=True, stable=True).tolist()

    def _parts(self, kept: Tensor) -> int:
        """Number of stretches of kept tokens."""
        return int((kept[1:] & ~kept[:-1]).sum()) + int(kept[0])

    def _joined(self, context: Tensor, kept: Tensor) -> Tensor:
        parts: list[Tensor] = []
        numbers = kept.nonzero()[:, 0]
        cuts = (numbers.diff() > 1).nonzero()[:, 0] + 1
        for numbered in numbers.tensor_split(cuts):
            parts += [self._gap] * bool(parts) + [context[numbered]]
        return torch.cat(parts)
