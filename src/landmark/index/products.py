"""Scores of all queries at all keys, as a matrix product.

How it rounds the score of one query and one key depends on how many keys there are, and where among them that one is.
So where all scores are wanted they are taken of `TILE` keys at a time: a branch that takes whole tiles from where it
left and computes the last itself has the same scores to the last bit as an index that never had branches.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 1 << 13


def tiles(start: int, stop: int) -> Iterator[slice]:
    """Slots start..stop by tiles; `start` begins one."""
    return (slice(first, min(first + TILE, stop)) for first in range(start, stop, TILE))


def products(query: Tensor, keys: Tensor, room: Tensor | None = None) -> Tensor:
    """Inner products [B,H,T,n], in `room` if given, of queries `[B,H,T,D]` and keys `[B,Hkv,n,D]`."""
    shape = (*query.shape[:3], keys.shape[2])
    room = query.new_empty(shape[0] * shape[1] * shape[2] * shape[3]) if room is None else room
    scores = room[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)
    keys = keys.flatten(0, 1)
    grouped = query.reshape(len(keys), -1, query.shape[-1])  # query heads of a group share keys
    torch.bmm(grouped, keys.transpose(1, 2), out=scores.view(len(keys), -1, shape[3]))
    return scores


def products_at(query: Tensor, keys: Tensor, numbers: Tensor) -> Tensor:
    """The same, -inf where `numbers [B,n]` say -1: no block to find."""
    return products(query, keys).masked_fill_((numbers < 0)[:, None, None], -torch.inf)
