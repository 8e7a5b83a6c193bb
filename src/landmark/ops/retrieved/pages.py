"""Where blocks lie: big buffers of whole blocks, and the places of those that each query reads."""

from typing import NamedTuple

from torch import Tensor


class Pages(NamedTuple):
    """Blocks in place. What lies at `places` is never copied by those who can read it where it is.

    `keys [B,Hkv,S,stride,D]`, rotated by their offset in the block, and `values [B,Hkv,S,stride,Dv]`, contiguous;
    the last of the stride positions is the landmark, whose value is not read. `places`, long: in 0..S-1,
    for the keys of query head h in those of key-value head h // (H // Hkv); -1 is no block. [B,H,T,k], or
    [B,1,T,k] where heads share their blocks, or [B,H,1,k] where queries do.
    """

    keys: Tensor
    values: Tensor
    places: Tensor


class Scores(NamedTuple):
    """How products of queries and keys become scores."""

    scale: float
    softcap: float | None
