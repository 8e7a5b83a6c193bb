"""Keys as `KeyRing` keeps them, read in compiled loops."""

from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from landmark.ops.compiled import compiled, in_parts


def plain(x: Any) -> Any:
    """An entry of a key as a number; for compiled code alone."""
    raise NotImplementedError


@overload(plain, inline="always", strict=False)
def _plain(x: Any) -> Any:
    if x == types.uint16:  # bfloat16: the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << 16).view(np.float32)
    return lambda x: x


@compiled
def score(query: Any, i: int, keys: Any, units: Any, j: int) -> Any:
    """The product of query i of `[.,D]` and key j of `[.,D]`, which counts in `units [.]` if that is not None.

    It depends on these two alone: equal keys tie wherever they lie.
    """
    total = query.dtype.type(0)
    for d in range(query.shape[1]):
        total += query[i, d] * plain(keys[j, d])
    return total if units is None else total * units[j]


def rounding(longest: float, dim: int, dtype: torch.dtype) -> float:
    """How far `score` of a query of length 1 may be from any other sum of the same `dim` terms; no key is `longest`."""
    # Each of the two sums may be off by half of that; 8 are for what else takes part, such as units and the length.
    return longest * (dim + 8) * torch.finfo(dtype).eps


def scores_of_own(query: Tensor, keys: Tensor) -> Tensor:
    """Scores [B,H,T,k] of queries `[B,H,T,k,D]`, each at its own one of `keys [B,Hkv,k,D]`, on a CPU."""
    scores = query.new_empty(query.shape[:4])
    arrays = [x.contiguous().view(-1, x.shape[-1]).numpy() for x in (query, keys)]
    k, sharing = query.shape[3], query.shape[1] // keys.shape[1] * query.shape[2]
    in_parts(lambda start, stop: _score_own(*arrays, scores.view(-1).numpy(), k, sharing, start, stop), scores.numel())
    return scores


@compiled
def _score_own(query: Any, keys: Any, out: Any, k: int, sharing: int, start: int, stop: int) -> None:
    """Fills start..stop of `out` for queries one after the other, of which k times `sharing` share k keys."""
    for i in range(start, stop):
        out[i] = score(query, i, keys, None, i // (sharing * k) * k + i % k)
