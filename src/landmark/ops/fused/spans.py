"""Ranges of tiles that a program visits: whole earlier blocks without masks, others with, invisible ones never."""

# ruff: noqa: ANN001, ANN201
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

LOWEST = tl.constexpr(-(1 << 63))
HIGHEST = tl.constexpr((1 << 63) - 1)
_SCANNED = tl.constexpr(1024)  # blocks at once


def label_tensors(
    key_mask: Tensor | None, document_ids: Tensor | None, like: Tensor, block_size: int, phase: int
) -> tuple[Tensor | None, Tensor | None]:
    """Labels of positions, equal for a query and the keys it may see, and the range of labels in each block.

    Returns int64 [B,2,Tk], the labels of positions as queries and as keys, and [B,2,2,blocks], the lowest and
    the highest of either. Padding is no key: it has the smallest int64 for a label, which is no document's.
    """
    if key_mask is None and document_ids is None:
        return None, None
    if document_ids is None:
        document_ids = torch.zeros(like.shape[0], like.shape[2], dtype=torch.long, device=like.device)
    ids = document_ids.long()
    hidden = torch.zeros_like(ids, dtype=torch.bool) if key_mask is None else ~key_mask
    labels = torch.stack((ids, ids.masked_fill(hidden, LOWEST.value)), dim=1)
    lows = torch.stack((ids, ids.masked_fill(hidden, HIGHEST.value)), dim=1)
    stride = block_size + 1
    beyond = -(phase + like.shape[2]) % stride

    def by_block(x: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(x, (phase, beyond), value=fill).unflatten(-1, (-1, stride))

    lowest = by_block(lows, HIGHEST.value).amin(-1)
    return labels, torch.stack((lowest, by_block(labels, LOWEST.value).amax(-1)), dim=2)


@triton.jit
def query_tile(first_query, problem, M: tl.constexpr):
    """Batch row and head of a program, its query rows [M], which of them exist, and their positions among the keys."""
    tiles = tl.cdiv(problem.queries, M)
    tile = tiles - 1 - tl.program_id(0) % tiles  # the last queries see most keys: begin with them
    batch = tl.program_id(0) // tiles // problem.heads
    head = tl.program_id(0) // tiles % problem.heads
    rows = tile * M + tl.arange(0, M)
    first = tl.load(first_query + batch).to(tl.int32) + problem.phase
    return batch, head, rows, rows < problem.queries, first + rows


@triton.jit
def key_tiles(positions, real, own_labels, ranges, batch, problem, STRIDE: tl.constexpr, G: tl.constexpr):
    """Key tiles for queries at these positions: begin and end, and in between where the whole ones begin and end."""
    lowest = tl.min(positions, 0)
    highest = tl.max(tl.where(real, positions, 0), 0)
    last = tl.minimum(highest, problem.keys + problem.phase - 1) // STRIDE
    begin = 0
    end = last // G + 1
    if ranges is None:
        whole_end = tl.minimum(lowest, problem.keys + problem.phase) // STRIDE // G
        whole_begin = tl.minimum(tl.minimum(problem.phase, 1), whole_end)  # a short first block is not whole
    else:
        low = tl.min(tl.where(real, own_labels, HIGHEST), 0)
        high = tl.max(tl.where(real, own_labels, LOWEST), 0)
        first_block, last_block = _sharing(ranges, batch, low, high, 1, problem, STRIDE)
        begin = first_block // G
        end = tl.minimum(end, last_block // G + 1)
        whole_begin = begin
        whole_end = begin
    return begin, whole_begin, whole_end, end


@triton.jit
def query_tiles(first, start, stop, key_labels, held, ranges, batch, problem, STRIDE: tl.constexpr, M: tl.constexpr):
    """Query tiles, the first query being at position `first`, that see keys at positions start..stop - 1.

    Begin, end, and between them the first tile for which these keys are whole earlier blocks.
    """
    begin = tl.maximum(start - first, 0) // M
    end = tl.cdiv(problem.queries, M)
    if ranges is None:
        whole_begin = tl.minimum(tl.cdiv(tl.maximum(stop - first, 0), M), end)
        if (start < problem.phase) | (stop > problem.keys + problem.phase):
            whole_begin = end
    else:
        low = tl.min(tl.where(held & (key_labels != LOWEST), key_labels, HIGHEST), 0)
        high = tl.max(tl.where(held, key_labels, LOWEST), 0)
        first_block, last_block = _sharing(ranges, batch, low, high, 0, problem, STRIDE)
        begin = tl.maximum(begin, tl.maximum(first_block * STRIDE - first, 0) // M)
        end = tl.minimum(end, tl.cdiv(tl.maximum((last_block + 1) * STRIDE - first, 0), M))
        whole_begin = end
    return begin, whole_begin, end


@triton.jit
def _sharing(ranges, batch, low, high, SIDE: tl.constexpr, problem, STRIDE: tl.constexpr):
    """First and last block that has a label in low..high; more blocks than there are, and -1, if none has."""
    blocks = tl.cdiv(problem.keys + problem.phase, STRIDE)
    lows = ranges + (batch * 2 + SIDE).to(tl.int64) * 2 * blocks
    first = blocks
    last = -1
    for start in range(0, blocks, _SCANNED):
        numbers = start + tl.arange(0, _SCANNED)
        inside = numbers < blocks
        shared = tl.load(lows + numbers, mask=inside, other=HIGHEST) <= high
        shared = shared & (tl.load(lows + blocks + numbers, mask=inside, other=LOWEST) >= low) & inside
        first = tl.minimum(first, tl.min(tl.where(shared, numbers, blocks), 0))
        last = tl.maximum(last, tl.max(tl.where(shared, numbers, -1), 0))
    return first, last


@triton.jit
def span(masked: tl.constexpr, begin, whole_begin, whole_end, end):
    """Range of steps over the whole tiles, or over the others, where `tile_at` skips the whole ones."""
    if masked:
        start = begin
        stop = end - (whole_end - whole_begin)
    else:
        start = whole_begin
        stop = whole_end
    return start, stop


@triton.jit
def tile_at(step, masked: tl.constexpr, whole_begin, whole_end):
    """The tile of a step of `span`."""
    return step + tl.where(step >= whole_begin, whole_end - whole_begin, 0) if masked else step
