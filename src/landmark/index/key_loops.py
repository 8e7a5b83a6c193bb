"""Keys as `KeyRing` keeps them, read in compiled loops."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from landmark.ops.compiled import compiled


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
