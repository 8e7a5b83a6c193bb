"""The local window of a layer: the newest complete blocks and the tail, for rows of their own lengths."""

import torch
from torch import Tensor


class LocalWindow:
    """Unrotated keys and values [B,Hkv,L,D], left-aligned.

    Row b holds `lengths[b]` positions, the first of which begins a block.
    """

    def __init__(self, rows: int) -> None:
        self.lengths = [0] * rows
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def joined(self, key: Tensor, value: Tensor, valid: list[int]) -> tuple[Tensor, Tensor]:
        """The window followed, in each row, by the first `valid` positions of the chunk `[B,Hkv,T,D]`.

        Rows shorter than the longest one end in finite values of no meaning. The width is at least 1.
        """
        return self._after(self._keys, key, valid), self._after(self._values, value, valid)

    def _after(self, window: Tensor | None, chunk: Tensor, valid: list[int]) -> Tensor:
        longest = max(self.lengths)
        if window is None:
            window = chunk[:, :, :0]
        if min(self.lengths) == longest and min(valid) == chunk.shape[2]:
            return torch.cat((window[:, :, :longest], chunk), dim=2)
        width = max(1, *(a + b for a, b in zip(self.lengths, valid, strict=True)))
        rows, heads, length, dim = chunk.shape
        steps = torch.arange(length, device=chunk.device)
        before, real = column(self.lengths, chunk.device), column(valid, chunk.device)
        # Padding goes to one place more, which is cut off.
        places = torch.where(steps < real, before + steps, width)[:, None, :, None]
        joined = chunk.new_zeros(rows, heads, width + 1, dim)
        joined[:, :, :longest] = window[:, :, :longest]
        return joined.scatter_(2, places.expand(-1, heads, -1, dim), chunk)[:, :, :width]

    def keep(self, keys: Tensor, values: Tensor, valid: list[int]) -> None:
        """Makes `keys` and `values`, joined with `valid` positions of a chunk, the window."""
        self.lengths = [before + new for before, new in zip(self.lengths, valid, strict=True)]
        self._keys, self._values = keys, values

    def oldest(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """The first positions of one row, keys and values [Hkv,length,D]."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys[row, :, :length], self._values[row, :, :length]

    def drop(self, counts: list[int]) -> None:
        """Forgets the first counts[b] positions of row b."""
        if self._keys is None or self._values is None or not any(counts):
            return
        self.lengths = [length - count for length, count in zip(self.lengths, counts, strict=True)]
        self._keys, self._values = (_shifted(x, counts, max(self.lengths)) for x in (self._keys, self._values))

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        self.lengths = [self.lengths[row] for row in rows]
        if self._keys is not None and self._values is not None:
            index = torch.tensor(rows, device=self._keys.device)
            self._keys, self._values = self._keys.index_select(0, index), self._values.index_select(0, index)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions kept, padding left out."""
        if self._keys is None or self._values is None:
            return 0
        per_position = sum(x.shape[1] * x.shape[-1] * x.element_size() for x in (self._keys, self._values))
        return sum(self.lengths) * per_position


def _shifted(x: Tensor, starts: list[int], width: int) -> Tensor:
    """`x [B,Hkv,L,D]` from starts[b] on in each row: [B,Hkv,width,D], not holding on to what came before."""
    if min(starts) == max(starts):
        return x[:, :, starts[0] : starts[0] + width].clone()
    places = column(starts, x.device) + torch.arange(width, device=x.device)
    places = places.clamp(max=x.shape[2] - 1)[:, None, :, None]
    return x.gather(2, places.expand(-1, x.shape[1], -1, x.shape[-1]))


def column(values: list[int], device: torch.device) -> Tensor:
    """One number for each row, long [B,1]."""
    return torch.tensor(values, dtype=torch.long, device=device)[:, None]


def steps_of(valid: list[int], width: int, device: torch.device) -> Tensor:
    """0, 1, 2, ... [B,width] in each row, held at its last valid position; -1 in a row of padding only."""
    return torch.minimum(torch.arange(width, device=device), column(valid, device) - 1)
