"""Attention over chosen blocks: every query reads blocks of its own.

Block keys are rotated once, by their offset in the block; a query is rotated by its distance from the start
of the block it reads. Nothing that is read is ever rotated.
"""

import torch
from torch import Tensor

from landmark.ops.retrieved.gathered import gathered_blocks
from landmark.ops.retrieved.in_place import in_place_blocks, reads_in_place
from landmark.ops.retrieved.pages import Pages, Scores
from landmark.ops.rotary import Rotation

__all__ = ["Pages", "merge", "retrieved_attention"]

BACKENDS = ("auto", "gathered", "numba")


def retrieved_attention(
    query: Tensor,
    pages: Pages,
    distance: Tensor,
    *,
    rotation: Rotation,
    scale: float,
    softcap: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention of each query inside each of the blocks chosen for it (Mohtashami & Jaggi 2023, section 3.2).

    Args:
        query: [B,H,T,D] before rotary.
        pages: where the blocks lie, and which of them each query reads.
        distance: long [B,H,T,k], or [B,1,T,k] where heads share: positions from the start of the block to the
            query.
        rotation, scale, softcap: as for the local keys.
        backend: "numba" (a CPU; blocks are read where they lie, queries that chose the same block one after
            another), "gathered" (any device; copies the blocks of a few queries at a time), or "auto", the best
            that serves the tensors. A backend asked for by name is never replaced by another.

    Returns:
        Per chosen block the softmax average [B,H,T,k,Dv] of its ordinary tokens' values, and the logit of its
        gate [B,H,T,k]; 0 and -inf where there is no block. In float32, or float64 for float64 queries. `merge`
        joins them to the local attention.

    Raises:
        ValueError: a backend that is unknown, or that cannot serve these tensors.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; choose one of {', '.join(BACKENDS)}")
    in_place = backend != "gathered" and reads_in_place(query, pages)
    if backend == "numba" and not in_place:
        raise ValueError(
            f"backend='numba' reads float32 or float64 on a CPU, not {query.dtype} with keys in {pages.keys.dtype} on "
            f"{pages.keys.device}; use backend='gathered'"
        )
    read = in_place_blocks if in_place else gathered_blocks
    return read(query, pages, distance, rotation, Scores(scale, softcap))


def merge(out: Tensor, lse: Tensor, inside: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Joins local attention and retrieved blocks under one softmax.

    `out [B,H,T,Dv]` is the local output and `lse [B,H,T]` the logarithm of its denominator; `inside` and
    `gates` are those of `retrieved_attention`. Returns the output in out's dtype and the weight of each gate
    [B,H,T,k].
    """
    total = torch.logaddexp(lse, gates.logsumexp(-1))
    total = total.masked_fill(total == -torch.inf, 0.0)[..., None]
    weights = torch.exp(gates - total)
    joined = (weights[..., None, :] @ inside).squeeze(-2).addcmul_(out, torch.exp(lse[..., None] - total))
    return joined.to(out.dtype), weights
