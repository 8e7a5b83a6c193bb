"""Retrieved blocks on a GPU, read where they lie: queries that chose the same block share one load of it.

Queries are rotated in the kernel: rotated copies, one for each pair of a query and a block, would be written and
read once more than the queries themselves.
"""

import torch
from torch import Tensor

from landmark.ops.retrieved.pages import Pages, Scores
from landmark.ops.retrieved.triton_kernels import blocks_kernel
from landmark.ops.rotary import Rotation

# Up to so many pairs, to order them should take longer than to read a block for each of them. Reckoned from
# bandwidths and launches, as is _SHARED_FROM; no GPU has measured either.
_FEW_PAIRS = 4096
_SMALL_TILE, _LARGE_TILE = 16, 64  # pairs
_SHARED_FROM = 16  # pairs for each page, on average, from which large tiles are filled
_TILE_BYTES = 16 << 10  # of queries, and of keys, in a matrix product: what larger ones keep does not fit registers
_TILE_ELEMENTS = 4096  # of keys that a single query meets


def triton_blocks(
    query: Tensor, pages: Pages, distance: Tensor, rotation: Rotation, scores: Scores
) -> tuple[Tensor, Tensor]:
    """See `landmark.ops.retrieved_attention`. Products of halves take rotated queries and weights as halves."""
    assert pages.keys.is_contiguous(), "keys are read in place"
    assert pages.values.is_contiguous(), "values are read in place"
    shape = (*query.shape[:3], pages.places.shape[-1])
    places, distance = (x.expand(shape).contiguous() for x in (pages.places, distance))
    gates = query.new_empty(shape, dtype=torch.float32)
    inside = gates.new_empty(*shape, pages.values.shape[-1])
    pairs = tiles = gates.numel()
    if pairs == 0:
        return inside, gates
    heads, (capacity, stride, dim) = pages.keys.shape[:2].numel(), pages.keys.shape[2:]
    width, value_width = _width(dim), _width(inside.shape[-1])
    widest = max(width, value_width)
    size, order, starts = 1, None, None
    # Queries of a single step hardly ever share blocks.
    if query.shape[2] > 1 and pairs > _FEW_PAIRS:
        size = _pairs(query, widest, pairs / (heads * capacity))
        order, starts = _shared_tiles(places.view(heads, -1), capacity, size)
        tiles = len(starts)
    with torch.cuda.device_of(query):
        blocks_kernel[(tiles,)](
            query.contiguous(),
            pages.keys,
            pages.values,
            places,
            distance,
            rotation.cos.contiguous(),
            rotation.sin.contiguous(),
            order,
            starts,
            inside,
            gates,
            pairs,
            shape[-1],
            pairs // heads,
            capacity,
            scores.scale,
            scores.softcap,
            STYLE=rotation.style,
            TURNED=0 if rotation.style == "none" else rotation.cos.shape[1],
            DIM=dim,
            VALUE_DIM=inside.shape[-1],
            STRIDE=stride,
            WIDTH=width,
            VALUE_WIDTH=value_width,
            M=size,
            N=_positions(query, widest, stride, size),
            enable_fp_fusion=True,
        )
    return inside, gates


def _shared_tiles(places: Tensor, capacity: int, size: int) -> tuple[Tensor, Tensor]:
    """Cuts pairs `places [N,P]` into tiles of up to `size` that read the same block of the same head.

    Returns the pairs in the order of their blocks, long [N * P], and the index there at which each tile begins,
    the first of them without a block. How many there are is known on the device alone: the list is as long as it
    may get, and surplus tiles begin at N * P.
    """
    heads, pairs = len(places), places.numel()
    first = torch.arange(heads, device=places.device)[:, None] * capacity
    # A stable order keeps queries of one block, and so what is read of them, in sequence.
    ordered, order = torch.where(places < 0, -1, places + first).flatten().sort(stable=True)
    run = torch.searchsorted(ordered, ordered)  # where the pairs of the same block begin
    begins = (torch.arange(pairs, device=places.device) - run) % size == 0
    limit = min(pairs, pairs // size + heads * capacity + 1)
    return order, torch.searchsorted(begins.cumsum(0), torch.arange(1, limit + 1, device=places.device))


def _width(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())


def _pairs(query: Tensor, width: int, sharing: float) -> int:
    """Pairs in a tile, a power of two, where a page is read by `sharing` pairs on average."""
    # Products in float32 keep all operands in registers, which large tiles would overflow.
    if query.dtype == torch.float32 or sharing < _SHARED_FROM:
        return _SMALL_TILE
    return min(_LARGE_TILE, _TILE_BYTES // (width * query.element_size()))


def _positions(query: Tensor, width: int, stride: int, size: int) -> int:
    """Positions of a block taken at once, a power of two, by a tile of `size` pairs."""
    limit = _TILE_ELEMENTS // width if size == 1 else _TILE_BYTES // (width * query.element_size())
    return max(16, min(1 << (stride - 1).bit_length(), limit))
