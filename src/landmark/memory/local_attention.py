"""Attention to the local window and the chunk itself, by whichever operation serves the queries best."""

from typing import NamedTuple

from torch import Tensor

from landmark.memory.local import LocalWindow
from landmark.memory.places import column
from landmark.ops.blockwise import blockwise_attention
from landmark.ops.few_queries import few_queries_attention, is_few
from landmark.ops.fused import fused_forward, obstacle
from landmark.ops.rotary import Rotation


class Scoring(NamedTuple):
    """How products of queries and keys become scores; sinks [H] are logits without values."""

    scale: float
    softcap: float | None
    sinks: Tensor | None


def attend_locally(
    window: LocalWindow, query: Tensor, valid: list[int], rotation: Rotation, scoring: Scoring, block_size: int
) -> tuple[Tensor, Tensor]:
    """Output [B,H,T,Dv] of `query [B,H,T,D]`, and the logarithm of its denominator [B,H,T].

    The chunk's own keys and values, `valid` positions of each row, were written to the window last.
    """
    width, device = query.shape[2], query.device
    positions = window.positions(valid, width, device)
    if is_few(query):
        return few_queries_attention(
            query, *window.buffers(), positions, rotation, block_size=block_size, **scoring._asdict()
        )
    turned = rotation.apply(query, positions[:, None])
    keys, values = window.seen_with(valid)
    if _fused(query):
        first = column(tuple(window.lengths), device)[:, 0]
        return fused_forward(turned, keys, values, block_size=block_size, first_query=first, **scoring._asdict())
    return blockwise_attention(
        turned, keys, values, block_size=block_size, query_positions=positions, **scoring._asdict()
    )


def _fused(query: Tensor) -> bool:
    """Whether the kernels for a GPU serve these queries."""
    return query.device.type == "cuda" and obstacle(query) is None
