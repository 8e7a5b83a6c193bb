"""Attention to retrieved blocks: every query reads blocks of its own, paged keys and values in place.

Block keys are rotated once, by their offset in the block. To read a block as if it stood elsewhere, the query is
rotated by its distance from the start of the block; nothing that is stored is ever rotated again.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from landmark.ops.decode_cpu import FEW_QUERIES
from landmark.ops.retrieved.cpu import numba_blocks, numba_join, numba_merge, serves, tiled_blocks
from landmark.ops.retrieved.pytorch import gathered_blocks, merged, of_heads
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring, working_dtype
from landmark.ops.triton_support import unsupported_reason

BACKENDS = ("auto", "gathered", "numba", "tiled", "triton")

_WORTH_A_TILE = 8  # queries that chose a block; fewer are read faster one after another


class Pages(NamedTuple):
    """Paged keys and values of one layer, and the page table of the queries. A page holds one block of one head.

    Fields:
        keys [B,Hkv,P,stride,D]: P pages of a row and key-value head, contiguous, rotated by their offset in the block;
            the last of the stride positions is the landmark.
        values [B,Hkv,P,stride,Dv]: of the same pages, contiguous; the value of the landmark is not read.
        table: the page table, long [B,H,T,k], or [B,1,T,k] where heads share their blocks, [B,Hkv,T,k] where those of
            a key-value head do, or [B,H,1,k] where queries do. Pages from 0 to P - 1, for query head h those of
            key-value head h // (H // Hkv); -1 is no block.
        behind: pages in other buffers, of blocks that are -1 in `table`; None where all lie in these.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    behind: "Pages | None" = None


_Backend = Callable[[Tensor, Pages, Tensor, Rotation, Scoring], tuple[Tensor, Tensor]]


def retrieved_attention(
    query: Tensor,
    pages: Pages,
    distance: Tensor,
    *,
    rotation: Rotation,
    scoring: Scoring,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention of each query inside each of the blocks retrieved for it (Mohtashami & Jaggi 2023, section 3.2).

    Args:
        query: [B,H,T,D] before rotary.
        pages: the blocks, and which of them each query reads.
        distance: long [B,H,T,k], or [B,1,T,k] or [B,Hkv,T,k] where heads share: positions from the start of the
            block to the query.
        rotation, scoring: those of the local attention; its sinks are no part of this.
        backend: "triton" (a GPU; pages are read in place, once for many queries that chose the block), "numba"
            (a CPU; the same, queries that chose the same block one after another), "tiled" (a CPU; the same in tiles
            of such queries, for many of them), "gathered" (any device; copies the blocks of a few queries at a time),
            or "auto", the fastest of the others that serves the tensors. A backend asked for by name is never
            replaced by another.

    Returns:
        Per block the softmax average [B,H,T,k,Dv] of its ordinary tokens' values, and the logit of its gate
        [B,H,T,k]; 0 and -inf where there is no block. In float32, or float64 for float64 queries. `merge` joins
        them to the local attention. They have no gradient.

    Raises:
        ValueError: a backend that is unknown, or that cannot serve these tensors; a gradient is wanted.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, pages.keys, pages.values)):
        raise ValueError(
            "retrieved blocks are read without gradients: call under torch.no_grad(), or use trainable_blocks"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; choose one of {', '.join(BACKENDS)}")
    inside, gates = _chosen_backend(backend, query, pages)(query, pages, distance, rotation, scoring)
    if pages.behind is None:
        return inside, gates
    there = retrieved_attention(query, pages.behind, distance, rotation=rotation, scoring=scoring, backend=backend)
    behind = of_heads(pages.behind.table >= 0, query.shape[1]).expand(gates.shape)
    return torch.where(behind[..., None], there[0], inside), torch.where(behind, there[1], gates)


def join_retrieved(
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    pieces: Iterable[tuple[slice, Pages]],
    distance: Tensor,
    *,
    rotation: Rotation,
    scoring: Scoring,
    blocks: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`merge` of a local `out` and `lse` with `retrieved_attention`; for few queries on a CPU in a single pass.

    `pieces` yields the pages of some queries [B,H,t] at a time, in order; a piece is read before the next is taken.
    Where there are few `blocks` to choose from, many queries share them, and a CPU reads them for tiles of queries. On
    a CPU the result is the same to the last bit however the queries are cut.
    """
    few = query.shape[2] <= FEW_QUERIES
    joined, apart = [], []
    for part, pages in pieces:
        some, distances = query[:, :, part], distance[:, :, part]
        if few and pages.behind is None and serves(query, pages):
            local = out[:, :, part], lse[:, :, part]
            joined.append(numba_join(some, pages, distances, rotation, scoring, local))
        else:
            backend = "tiled" if serves(query, pages) and _share(query, pages, blocks) else "auto"
            inside = retrieved_attention(some, pages, distances, rotation=rotation, scoring=scoring, backend=backend)
            apart.append(inside)
    return _concatenated(joined) if joined else merge(out, lse, *_concatenated(apart))


def _share(query: Tensor, pages: Pages, blocks: int | None) -> bool:
    """Whether many of the queries of a key-value head choose each of so many blocks, on average."""
    pairs = query.shape[1] // pages.keys.shape[1] * query.shape[2] * pages.table.shape[-1]
    return blocks is not None and pairs >= _WORTH_A_TILE * blocks


def merge(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joins local attention and retrieved blocks under one softmax.

    `out [B,H,T,Dv]` is the local output and `lse [B,H,T]` the logarithm of its denominator; `inside [B,H,T,k,Dv]` and
    `gates [B,H,T,k]` are those of `retrieved_attention`. Returns the output in out's dtype, the weight of each gate
    [B,H,T,k] and that of local attention, sinks included, [B,H,T]: together 1, or 0 for a query that sees nothing. All
    four inputs have gradients.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (out, lse, inside, gates))
    if out.device.type == "cpu" and gates.dtype == working_dtype(out) and not wanted:
        return numba_merge(out, lse, inside, gates)
    return merged(out, lse, inside, gates)


def _concatenated(parts: list[Any]) -> Any:
    """Concatenates tuples of tensors [B,H,t,..] over their queries."""
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True))


def _chosen_backend(backend: str, query: Tensor, pages: Pages) -> _Backend:
    numba = serves(query, pages)
    # On a CPU Triton kernels run in the interpreter, for tests: "auto" never takes them there.
    if backend == "triton" or (backend == "auto" and query.device.type == "cuda"):
        reason = unsupported_reason(query, pages.keys, pages.values)
        if reason is None:
            # Needs the package triton.
            from landmark.ops.retrieved.gpu import triton_blocks

            return triton_blocks
        if backend == "triton":
            raise ValueError(f"backend='triton' {reason}; use backend={'numba' if numba else 'gathered'!r}")
    if backend in ("numba", "tiled") and not numba:
        raise ValueError(
            f"backend={backend!r} reads keys and values of 16 bits or in {working_dtype(query)}, on a CPU, not keys in "
            f"{pages.keys.dtype} and values in {pages.values.dtype} on {pages.keys.device}; use backend='gathered'"
        )
    if backend == "tiled":
        return tiled_blocks
    return numba_blocks if numba and backend != "gathered" else gathered_blocks
