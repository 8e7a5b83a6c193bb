"""Attention over chosen blocks: every query reads blocks of its own.

Block keys are rotated once, by their offset in the block; a query is rotated by its distance from the start
of the block it reads. Nothing that is read is ever rotated.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from landmark.ops.decode_cpu import FEW_QUERIES
from landmark.ops.retrieved.cpu import in_place_blocks, join_few, merge, reads_in_place
from landmark.ops.retrieved.gathered import gathered_blocks
from landmark.ops.retrieved.pages import Pages
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.ops.triton_support import unsupported_reason

__all__ = ["Pages", "join_retrieved", "merge", "retrieved_attention"]

BACKENDS = ("auto", "gathered", "numba", "triton")

_Read = Callable[[Tensor, Pages, Tensor, Rotation, Scoring], tuple[Tensor, Tensor]]


def retrieved_attention(
    query: Tensor,
    pages: Pages,
    distance: Tensor,
    *,
    rotation: Rotation,
    scoring: Scoring,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention of each query inside each of the blocks chosen for it (Mohtashami & Jaggi 2023, section 3.2).

    Args:
        query: [B,H,T,D] before rotary.
        pages: where the blocks lie, and which of them each query reads.
        distance: long [B,H,T,k], or [B,1,T,k] where heads share: positions from the start of the block to the
            query.
        rotation, scoring: as for the local keys; sinks are no part of it.
        backend: "triton" (a GPU; blocks are read where they lie, once for many queries that chose them), "numba"
            (a CPU; the same, queries that chose the same block one after another), "gathered" (any device; copies
            the blocks of a few queries at a time), or "auto", the best that serves the tensors. A backend asked
            for by name is never replaced by another.

    Returns:
        Per chosen block the softmax average [B,H,T,k,Dv] of its ordinary tokens' values, and the logit of its
        gate [B,H,T,k]; 0 and -inf where there is no block. In float32, or float64 for float64 queries. `merge`
        joins them to the local attention. No gradient flows.

    Raises:
        ValueError: a backend that is unknown, or that cannot serve these tensors; a gradient is wanted.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, pages.keys, pages.values)):
        raise ValueError(
            "retrieved blocks are read without gradients: call under torch.no_grad(), or use trainable_blocks"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; choose one of {', '.join(BACKENDS)}")
    return _reader(backend, query, pages)(query, pages, distance, rotation, scoring)


def join_retrieved(
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    pieces: Iterable[tuple[slice, Pages]],
    distance: Tensor,
    *,
    rotation: Rotation,
    scoring: Scoring,
) -> tuple[Tensor, Tensor]:
    """`merge` of a local `out` and `lse` with `retrieved_attention`; for few queries on a CPU in a single pass.

    `pieces` gives the pages of some queries [B,H,t] at a time, in order: each is read before the next is asked for.
    On a CPU they make the same numbers, to the last bit, however the queries are cut.
    """
    few = query.shape[2] <= FEW_QUERIES
    joined, apart = [], []
    for part, pages in pieces:
        some, distances = query[:, :, part], distance[:, :, part]
        if few and reads_in_place(query, pages):
            local = out[:, :, part], lse[:, :, part]
            joined.append(join_few(some, pages, distances, rotation, scoring, local))
        else:
            apart.append(retrieved_attention(some, pages, distances, rotation=rotation, scoring=scoring))
    return _whole(joined) if joined else merge(out, lse, *_whole(apart))


def _whole(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Puts pairs of tensors [B,H,t,..] together again."""
    if len(parts) == 1:
        return parts[0]
    first, second = zip(*parts, strict=True)
    return torch.cat(first, dim=2), torch.cat(second, dim=2)


def _reader(backend: str, query: Tensor, pages: Pages) -> _Read:
    in_place = reads_in_place(query, pages)
    # On a CPU kernels are only interpreted, for tests: nothing to choose on one's own.
    if backend == "triton" or (backend == "auto" and query.device.type == "cuda"):
        reason = unsupported_reason(query, pages.keys, pages.values)
        if reason is None:
            # Needs the package triton.
            from landmark.ops.retrieved.gpu import triton_blocks

            return triton_blocks
        if backend == "triton":
            raise ValueError(f"backend='triton' {reason}; use backend={'numba' if in_place else 'gathered'!r}")
    if backend == "numba" and not in_place:
        raise ValueError(
            f"backend='numba' reads float32 or float64 on a CPU, not {query.dtype} with keys in {pages.keys.dtype} on "
            f"{pages.keys.device}; use backend='gathered'"
        )
    return in_place_blocks if in_place and backend != "gathered" else gathered_blocks
