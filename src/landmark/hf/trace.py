"""Which blocks were opened, by whom and how far."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One opened block: ordinary tokens `start:stop` of its row, and the mean gate over layers, heads and queries."""

    block: int
    start: int
    stop: int
    weight: float


@dataclass
class Trace:
    """Blocks opened by the recorded forwards.

    For each layer that retrieved anything, `blocks[layer]` is `[B, H, T, k]` long: the numbers of the blocks (0 is the
    first of the text) that each head of each stream position opened, -1 where it opened fewer than k. `gates[layer]`,
    of the same shape, is the weight that the block's landmark received in the joint softmax. Forwards follow each
    other along T, landmarks' own queries included.
    """

    block_size: int
    blocks: dict[int, Tensor] = field(default_factory=dict)
    gates: dict[int, Tensor] = field(default_factory=dict)

    def spans(self, row: int = 0) -> list[Span]:
        """The opened blocks of one row of the batch, the most read first."""
        weight: dict[int, float] = {}
        queries = 0
        for layer, blocks in self.blocks.items():
            opened = blocks[row].flatten()
            gates = self.gates[layer][row].flatten().double()
            real = opened >= 0
            queries += blocks[row].shape[0] * int((blocks[row] >= 0).any(-1).any(0).sum())
            numbers, where = opened[real].unique(return_inverse=True)
            totals = torch.zeros(len(numbers), dtype=torch.float64, device=gates.device)
            totals.index_add_(0, where, gates[real])
            for number, total in zip(numbers.tolist(), totals.tolist(), strict=False):
                weight[number] = weight.get(number, 0.0) + total
        ranked = sorted(weight.items(), key=lambda item: (-item[1], item[0]))
        size = self.block_size
        return [Span(block, block * size, (block + 1) * size, total / queries) for block, total in ranked]


@dataclass(frozen=True)
class Recording:
    """What the last forward opened, or with `keep_all` every one so far: per forward and layer, (blocks, gates)."""

    forwards: tuple[dict[int, tuple[Tensor, Tensor]], ...] = ()
    keep_all: bool = False

    def followed_by(self, opened: dict[int, tuple[Tensor, Tensor]]) -> "Recording":
        """The recording after one more forward."""
        return Recording((*self.forwards, opened) if self.keep_all else (opened,), self.keep_all)

    def of_rows(self, rows: Tensor) -> "Recording":
        """The recording where row i goes on from what was row `rows[i]`."""
        taken = [
            {layer: (b[rows.to(b.device)], g[rows.to(g.device)]) for layer, (b, g) in opened.items()}
            for opened in self.forwards
        ]
        return Recording(tuple(taken), self.keep_all)

    def forgotten(self) -> "Recording":
        """A recording of nothing that goes on in the same way."""
        return Recording(keep_all=self.keep_all)

    def trace(self, block_size: int) -> Trace:
        """The forwards one behind the other."""
        trace = Trace(block_size)
        for layer in sorted({layer for opened in self.forwards for layer in opened}):
            pieces = [opened[layer] for opened in self.forwards if layer in opened]
            trace.blocks[layer], trace.gates[layer] = _joined(pieces)
        return trace


def _joined(pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Puts the (blocks, gates) of several forwards one behind the other; fewer choices are filled with -1."""
    pieces = list(pieces)
    width = max(blocks.shape[-1] for blocks, _ in pieces)
    blocks = [torch.nn.functional.pad(b, (0, width - b.shape[-1]), value=-1) for b, _ in pieces]
    gates = [torch.nn.functional.pad(g, (0, width - g.shape[-1])) for _, g in pieces]
    return torch.cat(blocks, 2), torch.cat(gates, 2)
