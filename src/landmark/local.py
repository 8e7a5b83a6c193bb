"""The local window of a layer: the newest complete blocks and the tail, for rows of their own lengths."""

import torch
from torch import Tensor


class LocalWindow:
    """Unrotated keys and values [B,Hkv,L,D], left-aligned; row b holds `lengths[b]` positions from a block boundary."""

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
        before, real = (torch.tensor(x, device=chunk.device)[:, None] for x in (self.lengths, valid))
        places = torch.where(steps < real, before + steps, width)[:, None, :, None]  # padding falls off the end
        joined = chunk.new_zeros(rows, heads, width + 1, dim)
        joined[:, :, :longest] = window[:, :, :longest]
        return joined.scatter_(2, places.expand(-1, heads, -1, dim), chunk)[:, :, :width]

    def keep(self, keys: Tensor, values: Tensor, starts: list[int], stops: list[int]) -> None:
        """Makes positions starts[b] to stops[b] of row b of the joined `keys` and `values` the window."""
        self.lengths = [stop - start for start, stop in zip(starts, stops, strict=True)]
        self._keys, self._values = (_shifted(x, starts, max(self.lengths)) for x in (keys, values))

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
    """`x [B,Hkv,L,D]` from starts[b] on in each row, [B,Hkv,width,D], without holding on to what came before."""
    if not any(starts):
        return x[:, :, :width]
    if min(starts) == max(starts):
        return x[:, :, starts[0] : starts[0] + width].clone()
    first = torch.tensor(starts, device=x.device)[:, None]
    places = (first + torch.arange(width, device=x.device)).clamp(max=x.shape[2] - 1)[:, None, :, None]
    return x.gather(2, places.expand(-1, x.shape[1], -1, x.shape[-1]))
