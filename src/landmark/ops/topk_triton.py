"""Search through landmark keys on a GPU: a key is read once for the heads of a group, and no scores are written."""

from typing import Any

import torch
from torch import Tensor

from landmark.ops.triton_support import obstacle

_PROGRAMS = 512  # enough to keep the memory of a large GPU busy
_LARGEST_TILE = 16  # queries that meet a tile of keys together
_MOST_SLOTS = 64  # in a tile; what larger ones keep does not fit registers
_TILE_KEYS = 8192  # elements
_TILE_PRODUCTS = 16384  # elements of the products of a few queries
_CANDIDATES = 512


def search_landmarks(query: Tensor, keys: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best landmarks of each query, equal scores to the highest number (Mohtashami & Jaggi 2023, section 3.2).

    Two launches, however many landmarks there are. Made for a few queries, as in decoding: scores are summed in
    float32 without matrix units, which many queries would wait for.

    Args:
        query: [B,H,T,D], rotated and scaled.
        keys: [B,Hkv,S,D], contiguous; query head h scores those of key head h // (H // Hkv).
        numbers: long [B,n], the block whose landmark lies at each of the first n of the S slots, in any order and
            each below 2**31; -1 is not to be found, and its key is not read.
        k: how many to find.

    Returns:
        Scores, float32, and numbers, long, [B,H,T,k] each, in no order to rely on; -inf and -1 where there are
        fewer than k scores above -inf.

    Raises:
        ValueError: tensors that no Triton kernel serves.
    """
    if reason := obstacle(query, keys):
        raise ValueError(f"search_landmarks {reason}; use matrix products and `landmark.index.topk.top_newest`")
    assert keys.is_contiguous(), "keys are read in place"
    shape = (*query.shape[:3], k)
    if numbers.shape[1] == 0 or query.numel() == 0 or k == 0:
        return query.new_full(shape, -torch.inf, dtype=torch.float32), numbers.new_full(shape, -1)
    # Needs the package triton.
    from landmark.ops.search_kernels import best_of_all_kernel, best_of_part_kernel

    heads, capacity, dim = keys.shape[1:]
    items, rows = keys.shape[0] * heads, query.shape[1] // heads * query.shape[2]
    size, width = min(_LARGEST_TILE, _power(rows)), max(16, _power(dim))
    slots = _slots(size, width)
    row_tiles = -(-rows // size)
    tiles = -(-numbers.shape[1] // slots)
    steps = -(-tiles // max(1, _PROGRAMS // (items * row_tiles)))
    parts = -(-tiles // steps)
    found = numbers.new_empty(*query.shape[:3], parts, k)
    scores = query.new_empty(shape, dtype=torch.float32)
    best = numbers.new_empty(shape)
    options: dict[str, Any] = {"KEPT": _power(k), "enable_fp_fusion": True}
    with torch.cuda.device_of(query):
        best_of_part_kernel[(parts * row_tiles, items)](
            query.contiguous(),
            keys,
            numbers.contiguous(),
            found,
            rows,
            heads,
            capacity,
            numbers.shape[1],
            parts,
            steps,
            k,
            DIM=dim,
            WIDTH=width,
            ROWS=size,
            SLOTS=slots,
            **options,
        )
        options["WIDTH"] = min(_CANDIDATES, _power(parts * k))
        best_of_all_kernel[(scores[..., 0].numel(),)](found, scores, best, parts * k, k, **options)
    return scores, best


def _slots(size: int, width: int) -> int:
    """Slots in a tile, a power of two, that `size` queries meet together."""
    elements = _TILE_KEYS if size == _LARGEST_TILE else min(_TILE_KEYS, _TILE_PRODUCTS // size)
    return max(16, min(_MOST_SLOTS, elements // width))


def _power(count: int) -> int:
    """The lowest power of two from `count` on."""
    return 1 << (count - 1).bit_length()
