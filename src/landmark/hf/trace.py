"""Traces: the blocks that queries opened, and their gates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landmark.memory import Opened

if TYPE_CHECKING:
    from landmark.hf.tokenizer import EncodedText


@dataclass(frozen=True)
class Span:
    """One opened block: ordinary tokens `start:stop` of its row, and its mean gate.

    `weight` is the mean over all layers, heads and queries that had blocks in memory, queries of landmarks included and
    padding excluded. A query that did not open this block, or none at all by a context miss, counts as 0.
    """

    block: int
    start: int
    stop: int
    weight: float


@dataclass
class Trace:
    """Blocks opened in the recorded forwards.

    For each layer that retrieved anything, `blocks[layer] [B, H, T, k]`, long, has the numbers of the blocks (0 is the
    first of the text) that each head opened at each stream position, -1 where it opened fewer than k. `gates[layer]`,
    of the same shape, is the weight of the block's landmark in the joint softmax (section 3.1 of the paper). Forwards
    are concatenated along T, queries of landmarks included; forwards with empty memory, and native sliding layers, are
    left out. `asking[layer] [B]`, long, counts the queries of each head that had blocks in memory.
    """

    block_size: int
    blocks: dict[int, Tensor] = field(default_factory=dict)
    gates: dict[int, Tensor] = field(default_factory=dict)
    asking: dict[int, Tensor] = field(default_factory=dict)

    def spans(self, row: int = 0) -> list[Span]:
        """The opened blocks of one row of the batch, by falling weight."""
        weight: dict[int, float] = {}
        queries = 0
        for layer, blocks in self.blocks.items():
            opened = blocks[row].flatten()
            gates = self.gates[layer][row].flatten().double()
            valid = opened >= 0
            queries += blocks.shape[1] * int(self.asking[layer][row])
            numbers, index = opened[valid].unique(return_inverse=True)
            totals = torch.zeros(len(numbers), dtype=torch.float64, device=gates.device)
            totals.index_add_(0, index, gates[valid])
            for number, total in zip(numbers.tolist(), totals.tolist(), strict=False):
                weight[number] = weight.get(number, 0.0) + total
        ranked = sorted(weight.items(), key=lambda item: (-item[1], item[0]))
        size = self.block_size
        return [Span(block, block * size, (block + 1) * size, total / queries) for block, total in ranked]


@dataclass(frozen=True)
class Recording:
    """Blocks opened in the last forward, or with `keep_all` in every one so far, by forward and layer."""

    forwards: tuple[dict[int, Opened], ...] = ()
    keep_all: bool = False

    def followed_by(self, opened: dict[int, Opened]) -> "Recording":
        """The recording after one more forward."""
        return Recording((*self.forwards, opened) if self.keep_all else (opened,), self.keep_all)

    def of_rows(self, rows: Tensor) -> "Recording":
        """The recording with row i taken from row `rows[i]`."""
        taken = [{layer: _of_rows(one, rows) for layer, one in opened.items()} for opened in self.forwards]
        return Recording(tuple(taken), self.keep_all)

    def cleared(self) -> "Recording":
        """An empty recording with the same `keep_all`."""
        return Recording(keep_all=self.keep_all)

    def trace(self, block_size: int) -> Trace:
        """The recorded forwards as one trace."""
        trace = Trace(block_size)
        for layer in sorted({layer for opened in self.forwards for layer in opened}):
            whole = _concatenated([opened[layer] for opened in self.forwards if layer in opened])
            trace.blocks[layer], trace.gates[layer], trace.asking[layer] = whole.blocks, whole.gates, whole.asking
        return trace


def _of_rows(opened: Opened, rows: Tensor) -> Opened:
    tensors = opened.blocks, opened.gates, opened.asking
    return Opened(*(x[rows.to(x.device)] for x in tensors))


def _concatenated(pieces: Sequence[Opened]) -> Opened:
    """Concatenates several forwards; rows of fewer choices are padded with -1."""
    width = max(one.blocks.shape[-1] for one in pieces)
    blocks = [torch.nn.functional.pad(x.blocks, (0, width - x.blocks.shape[-1]), value=-1) for x in pieces]
    gates = [torch.nn.functional.pad(x.gates, (0, width - x.gates.shape[-1])) for x in pieces]
    asking = torch.stack([x.asking for x in pieces]).sum(0)
    return Opened(torch.cat(blocks, 2), torch.cat(gates, 2), asking)


@dataclass(frozen=True)
class Passage:
    """An opened block as tokens `start:stop` and characters `first:last` of the text; `weight` is its mean gate."""

    block: int
    start: int
    stop: int
    first: int
    last: int
    weight: float
    text: str


def passages(spans: Iterable[Span], encoded: "EncodedText", limit: int) -> list[Passage]:
    """The text of the first `limit` of `spans`; no other part of `encoded` is read."""
    found = []
    for span in islice(spans, limit):
        first, last = encoded.characters(span.start, span.stop)
        text = encoded.text[first:last]
        found.append(Passage(span.block, span.start, span.stop, first, last, span.weight, text))
    return found
