"""Cutting padded rows into chunks so that each row is read as if it were alone: padding changes no result."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """The part of an input `[B, S]` that is read at once: of row b the tokens in `columns[b]`, where `real[b]`.

    `columns` and `real` are `[B, W]`; rows that end earlier are padded on the right.
    """

    columns: Tensor
    real: Tensor

    def take(self, tokens: Tensor) -> Tensor:
        """`[B, S]` or `[B, S, C]` to `[B, W]` or `[B, W, C]`."""
        columns = self.columns.view(*self.columns.shape, *[1] * (tokens.dim() - 2))
        return tokens.gather(1, columns.expand(*self.columns.shape, *tokens.shape[2:]))

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Writes `part [B, W, C]` to its columns of `whole [B, S, C]`."""
        row, place = self.real.nonzero(as_tuple=True)
        whole[row, self.columns[row, place]] = part[row, place]


def cut(real: Tensor, first: list[int], then: int) -> list[Chunk]:
    """Chunks of an input whose tokens stand where `real [B, S]`: `first[b]` of each row, after that `then` each.

    One chunk where every row fits its first.
    """
    counts = real.sum(1).tolist()
    # Tokens in their order, padding behind them.
    columns = torch.argsort((~real).long(), dim=1, stable=True)
    starts, stops = [0] * len(counts), [min(count, size) for count, size in zip(counts, first, strict=True)]
    chunks = []
    while not chunks or any(stop > start for start, stop in zip(starts, stops, strict=True)):
        width = max(1, *(stop - start for start, stop in zip(starts, stops, strict=True)))
        steps = torch.arange(width, device=real.device)
        begin, end = (torch.tensor(x, device=real.device)[:, None] for x in (starts, stops))
        places = (begin + steps).clamp(max=real.shape[1] - 1)
        chunks.append(Chunk(columns.gather(1, places), begin + steps < end))
        starts, stops = stops, [min(count, stop + then) for count, stop in zip(counts, stops, strict=True)]
    return chunks


def fill_padding(whole: Tensor, real: Tensor) -> Tensor:
    """`whole [B, S, C]` where padding repeats the token before it, as `Stream.strip` has it."""
    places = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    last = places.masked_fill(~real, 0).cummax(1).values
    return whole.gather(1, last[..., None].expand_as(whole))
