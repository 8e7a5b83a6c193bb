"""Sizes of tiles that are tried on a device: few, and none that spills much of its registers."""

from typing import Any

import triton

from landmark.ops.fused import backward, backward_long, forward

_KINDS = {
    forward.forward_kernel: "forward",
    forward.forward_long_kernel: "forward",
    backward.query_gradients_kernel: "query",
    backward_long.query_gradients_long_kernel: "query",
    backward.key_gradients_kernel: "key",
    backward_long.key_gradients_long_kernel: "key",
}

# Elements of a tile of keys, up to which these (M, N, warps, stages) apply. A stage is a tile in flight.
_Sizes = tuple[tuple[int, int, int, int], ...]
_HALF: dict[str, dict[int, _Sizes]] = {
    "forward": {
        8192: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3)),
        16384: ((64, 64, 8, 2), (32, 64, 8, 2)),
        32768: ((32, 64, 8, 1),),
    },
    "query": {
        4096: ((128, 64, 8, 2), (64, 64, 4, 2)),
        8192: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
        16384: ((64, 64, 8, 2), (32, 64, 8, 2)),
        32768: ((32, 64, 8, 1),),
    },
    "key": {
        4096: ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
        # Not (32, 64, 8, 2), of which Triton 3.6 makes a program that computes wrong gradients of keys on an H200.
        8192: ((128, 64, 8, 2), (128, 64, 8, 1)),
        32768: ((32, 64, 8, 1),),
    },
}
# Without matrix units every thread keeps rows and columns whole: many threads and small tiles.
_SINGLE: dict[str, dict[int, _Sizes]] = {
    "forward": {8192: ((32, 64, 8, 1),), 32768: ((16, 32, 8, 1),)},
    "query": {8192: ((16, 64, 8, 1),), 32768: ((16, 32, 8, 1),)},
    "key": {8192: ((32, 64, 16, 1), (16, 64, 8, 1)), 32768: ((16, 32, 8, 1),)},
}


def columns(constants: dict[str, int]) -> int:
    """Columns of a tile of keys; a block of several tiles has a second sum beside it, and counts as wide."""
    return max(64, constants.get("P", 128))


def tilings(kernel: Any, columns: int, width: int, itemsize: int) -> list[triton.Config]:
    """What is tried for a kernel, by the size of its tile of keys and of its elements in bytes."""
    sizes = (_SINGLE if itemsize == 4 else _HALF)[_KINDS[kernel]]
    chosen = next(chosen for limit, chosen in sizes.items() if columns * width <= limit)
    return [triton.Config({"M": m, "N": n}, num_warps=warps, num_stages=stages) for m, n, warps, stages in chosen]
