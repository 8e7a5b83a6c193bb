"""Traces: the blocks that queries opened, their gates, and what local attention got."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from landmark.memory import Opened


@dataclass(frozen=True)
class Span:
    """One opened block: ordinary tokens `start:stop` of its row, and its mean gate.

    `weight` is the mean over layers, heads and queries that had blocks in memory, queries of landmarks included and
    padding excluded. A query that did not open this block, or none at all by a context miss, counts as 0.
    """

    block: int
    start: int
    stop: int
    weight: float


@dataclass
class Trace:
    """What the queries of the recorded forwards attended to.

    Forwards are concatenated along T, queries of landmarks included. `positions [B, T]`, long, is the stream position
    of each query, landmarks counted, and -1 at padding; `queries` finds those of ordinary tokens.

    For each layer that retrieved anything (native sliding layers never do), `blocks[layer] [B, H, T, k]`, long, has the
    numbers of the blocks (0 is the first of the text) that each head opened for each query, -1 where it opened fewer
    than k. `gates[layer]`, of the same shape, is the weight of the block's landmark in the joint softmax (section 3.1
    of the paper), and `local[layer] [B, H, T]` the weight of everything else: the local window, the chunk, attention
    sinks. They sum to 1 for every query; at padding all are 0. `asking[layer] [B]`, long, counts the queries of each
    head that had blocks in memory.
    """

    block_size: int
    positions: Tensor
    blocks: dict[int, Tensor] = field(default_factory=dict)
    gates: dict[int, Tensor] = field(default_factory=dict)
    local: dict[int, Tensor] = field(default_factory=dict)
    asking: dict[int, Tensor] = field(default_factory=dict)

    def queries(self, tokens: Iterable[int], row: int = 0) -> list[int]:
        """The places along T of the queries of ordinary `tokens` of one row, counted from the start of its text.

        Of a token that was read twice, as in assisted decoding, the last. Raises ValueError for a token that was not
        recorded.
        """
        positions = self.positions[row].tolist() if len(self.positions) else []
        where = {position: place for place, position in enumerate(positions)}
        found = []
        for token in tokens:
            place = where.get(token + token // self.block_size)
            if place is None:
                raise ValueError(f"token {token} was not recorded: call cache.start_trace() before it is read")
            found.append(place)
        return found

    def spans(self, row: int = 0, heads: Collection[tuple[int, int]] | None = None) -> list[Span]:
        """The opened blocks of one row of the batch, by falling weight; `heads` as for `weights`."""
        ranked = sorted(self.weights(row, heads).items(), key=lambda item: (-item[1], item[0]))
        size = self.block_size
        return [Span(block, block * size, (block + 1) * size, weight) for block, weight in ranked]

    def weights(self, row: int = 0, heads: Collection[tuple[int, int]] | None = None) -> dict[int, float]:
        """The mean gate of each opened block of a row, over all heads or `heads`, pairs (layer, head)."""
        sums: dict[int, float] = {}
        queries = 0
        for layer, blocks in self.blocks.items():
            counted = [head for head in range(blocks.shape[1]) if heads is None or (layer, head) in heads]
            opened = blocks[row, counted].flatten()
            gates = self.gates[layer][row, counted].flatten().double()
            valid = opened >= 0
            queries += len(counted) * int(self.asking[layer][row])
            numbers, index = opened[valid].unique(return_inverse=True)
            totals = torch.zeros(len(numbers), dtype=torch.float64, device=gates.device)
            totals.index_add_(0, index, gates[valid])
            for number, total in zip(numbers.tolist(), totals.tolist(), strict=True):
                sums[number] = sums.get(number, 0.0) + total
        return {block: total / queries for block, total in sums.items()}


@dataclass(frozen=True)
class Forward:
    """A forward of `width` stream positions: the blocks that its layers opened, by layer.

    Its rows, `lengths [B]` positions of which are no padding, followed `before [B]` ordinary tokens.
    """

    before: Tensor
    lengths: Tensor
    width: int
    opened: dict[int, Opened]

    def of_rows(self, rows: Tensor) -> "Forward":
        """The forward with row i taken from row `rows[i]`."""
        opened = {layer: _of_rows(one, rows) for layer, one in self.opened.items()}
        before, lengths = (x[rows.to(x.device)] for x in (self.before, self.lengths))
        return Forward(before, lengths, self.width, opened)

    def opened_like(self, layer: int, other: Opened) -> Opened:
        """What a layer opened, in tensors like those of another forward; nothing where it had no blocks in memory."""
        if layer in self.opened:
            return self.opened[layer]
        rows, heads, _, k = other.blocks.shape
        real = torch.arange(self.width, device=self.lengths.device) < self.lengths[:, None]
        local = real[:, None].expand(-1, heads, -1).to(other.local)
        shape = rows, heads, self.width, k
        asking = torch.zeros_like(other.asking)
        return Opened(other.blocks.new_full(shape, -1), other.gates.new_zeros(shape), local, asking)


@dataclass(frozen=True)
class Recording:
    """The last forward, or with `keep_all` every one so far."""

    forwards: tuple[Forward, ...] = ()
    keep_all: bool = False

    def followed_by(self, forward: Forward) -> "Recording":
        """The recording after one more forward."""
        return Recording((*self.forwards, forward) if self.keep_all else (forward,), self.keep_all)

    def of_rows(self, rows: Tensor) -> "Recording":
        """The recording with row i taken from row `rows[i]`."""
        return Recording(tuple(forward.of_rows(rows) for forward in self.forwards), self.keep_all)

    def cleared(self) -> "Recording":
        """An empty recording with the same `keep_all`."""
        return Recording(keep_all=self.keep_all)

    def trace(self, block_size: int) -> Trace:
        """The recorded forwards as one trace."""
        trace = Trace(block_size, _positions(self.forwards, block_size))
        for layer in sorted({layer for forward in self.forwards for layer in forward.opened}):
            known = next(forward.opened[layer] for forward in self.forwards if layer in forward.opened)
            whole = _concatenated([forward.opened_like(layer, known) for forward in self.forwards])
            trace.blocks[layer], trace.gates[layer] = whole.blocks, whole.gates
            trace.local[layer], trace.asking[layer] = whole.local, whole.asking
        return trace


def _of_rows(opened: Opened, rows: Tensor) -> Opened:
    tensors = opened.blocks, opened.gates, opened.local, opened.asking
    return Opened(*(x[rows.to(x.device)] for x in tensors))


def _positions(forwards: Sequence[Forward], block_size: int) -> Tensor:
    """Stream positions `[B, T]` of the queries of all forwards, -1 at padding."""
    if not forwards:
        return torch.empty(0, 0, dtype=torch.long)
    device = forwards[0].before.device
    widths = torch.tensor([forward.width for forward in forwards], device=device)
    before, lengths = (
        torch.stack(x, 1).repeat_interleave(widths, 1)
        for x in ([forward.before for forward in forwards], [forward.lengths for forward in forwards])
    )
    steps = torch.cat([torch.arange(forward.width, device=device) for forward in forwards])
    return (before + before // block_size + steps).masked_fill(steps >= lengths, -1)


def _concatenated(pieces: Sequence[Opened]) -> Opened:
    """Concatenates several forwards; rows of fewer choices are padded with -1."""
    blocks, gates, local, asking = zip(*((x.blocks, x.gates, x.local, x.asking) for x in pieces), strict=True)
    width = max(x.shape[-1] for x in blocks)
    blocks, gates = [_padded(x, width, -1) for x in blocks], [_padded(x, width, 0) for x in gates]
    return Opened(torch.cat(blocks, 2), torch.cat(gates, 2), torch.cat(local, 2), torch.stack(asking).sum(0))


def _padded(x: Tensor, width: int, value: int) -> Tensor:
    """`x` with so many columns; most have them."""
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]), value=value)
