"""Grouped softmax attention: checks of the arguments and dispatch to a backend."""

import math

import torch
from torch import Tensor

from landmark.ops import fused
from landmark.ops.blockwise import blockwise_attention, complete_first_block
from landmark.ops.reference import reference_attention
from landmark.ops.scoring import Scoring

_BACKENDS = ("auto", "reference", "blockwise", "fused")


def landmark_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_size: int | None = None,
    phase: int = 0,
    is_landmark: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Grouped softmax attention over a stream with landmarks (Mohtashami & Jaggi 2023, section 3.1).

    A query attends to the ordinary tokens of its own block up to itself and to the landmarks of earlier blocks, in
    one joint softmax. The weight of a landmark is the gate of its block: a second softmax, over the ordinary tokens
    of the block, distributes it among them. The output of a query that sees nothing is 0.

    Args:
        query: [B,H,Tq,D], the last Tq of the Tk positions, after rotary.
        key, value: [B,Hkv,Tk,D]; H is a multiple of Hkv, and query head h reads key head h // (H // Hkv).
        block_size: ordinary tokens in a block; every `block_size + 1`-th position is then a landmark.
        phase: ordinary tokens of the first block that lie before position 0, in 0..block_size.
        is_landmark: bool [Tk] or [B,Tk], landmarks at any positions; give this or block_size.
        scale: factor of the scores; default 1/sqrt(D).
        softcap: scores become softcap * tanh(scores / softcap) before any softmax.
        sinks: [H], per head one more logit of the joint softmax, without a value.
        key_mask: bool [B,Tk], True at real tokens, False at padding.
        document_ids: int [B,Tk]; packed documents; a token sees tokens and landmarks of its own document only.
        dropout: probability of dropping a final weight; the others are scaled up by 1 / (1 - dropout).
        backend: "reference" (dense), "blockwise" (needs block_size), "fused" (Triton kernels for NVIDIA GPUs;
            needs block_size, float32, bfloat16 or float16, and a head_dim of 16..256), or "auto": on a GPU fused
            where it can, else blockwise where block_size is given, else reference. A backend asked for by name
            is never replaced by another.

    Returns:
        [B,H,Tq,D] in query's dtype. Scores and softmax are computed in float32 (float64 for float64 inputs). All
        backends have first derivatives; "reference" alone has second ones, and the others raise RuntimeError for them.
        NaN and infinities at padding and in the values of landmarks have no effect. Elsewhere they reach the rows that
        see them and no others.

    Raises:
        ValueError: arguments that do not fit together, or a backend that cannot do what is asked.
    """
    return grouped_attention(
        query,
        key,
        value,
        Scoring(scale, softcap, sinks, dropout),
        block_size=block_size,
        phase=phase,
        is_landmark=is_landmark,
        key_mask=key_mask,
        document_ids=document_ids,
        backend=backend,
    )


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    *,
    block_size: int | None = None,
    phase: int = 0,
    is_landmark: Tensor | None = None,
    key_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`landmark_attention` as a layer asks for it, with its `scoring`."""
    _check_tensors(query, key, value)
    _check_extras(query, key, scoring.sinks, key_mask, document_ids)
    _check_landmarks(key, block_size, phase, is_landmark)
    _check_numbers(scoring)
    backend = _chosen_backend(backend, query, is_landmark)
    if key_mask is not None:
        query, key, value = _padding_zeroed(query, key, value, key_mask)
    if backend == "fused":
        assert block_size is not None
        return fused.fused_attention(
            query,
            key,
            value,
            block_size=block_size,
            phase=phase,
            scoring=scoring,
            key_mask=key_mask,
            document_ids=document_ids,
        )
    if backend == "reference":
        if block_size is not None:
            positions = torch.arange(key.shape[2], device=key.device) + phase
            is_landmark = positions % (block_size + 1) == block_size
        assert is_landmark is not None
        with torch.autocast(query.device.type, enabled=False):
            return reference_attention(
                query,
                key,
                value,
                is_landmark=is_landmark.view(-1, key.shape[2]),
                scoring=scoring,
                key_mask=key_mask,
                document_ids=document_ids,
            )
    assert block_size is not None
    if phase:
        key, value, key_mask, document_ids = complete_first_block(key, value, key_mask, document_ids, phase)
    start = key.shape[2] - query.shape[2]
    out, _ = blockwise_attention(
        query,
        key,
        value,
        block_size=block_size,
        query_positions=torch.arange(start, key.shape[2], device=query.device),
        scoring=scoring,
        key_mask=key_mask,
        document_ids=document_ids,
        query_document_ids=None if document_ids is None else document_ids[:, start:],
    )
    return out


def _padding_zeroed(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeroes keys and values at padding, and queries there that are not finite: a weight of 0 times NaN is NaN."""
    padding = ~key_mask[:, None, :, None]
    bad_queries = padding[:, :, key.shape[2] - query.shape[2] :] & ~query.isfinite().all(-1, keepdim=True)
    return query.masked_fill(bad_queries, 0.0), key.masked_fill(padding, 0.0), value.masked_fill(padding, 0.0)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if any(x.dim() != 4 or 0 in x.shape for x in (query, key, value)):
        raise ValueError(f"{shapes}: each must be [batch, heads, length, head_dim] without empty dimensions")
    kinds = {(x.dtype, x.device) for x in (query, key, value)}
    if len(kinds) > 1 or not query.is_floating_point():
        listed = ", ".join(f"{x.dtype} on {x.device}" for x in (query, key, value))
        raise ValueError(f"query, key and value are {listed}: convert them to one floating dtype and device")
    if key.shape != value.shape:
        raise ValueError(f"{shapes}: key and value must have the same shape")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"{shapes}: batch and head_dim must be the same")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{shapes}: the query heads must be a multiple of the {key.shape[1]} key heads")
    if query.shape[2] > key.shape[2]:
        raise ValueError(f"{shapes}: queries are the last of the key positions, so pass a key for each of them")


def _check_extras(
    query: Tensor, key: Tensor, sinks: Tensor | None, key_mask: Tensor | None, document_ids: Tensor | None
) -> None:
    tokens = (key.shape[0], key.shape[2])
    if sinks is not None and (sinks.shape != query.shape[1:2] or not sinks.is_floating_point()):
        raise ValueError(f"sinks is {_kind(sinks)}; pass a floating point tensor of ({query.shape[1]},)")
    if key_mask is not None and (key_mask.shape != tokens or key_mask.dtype != torch.bool):
        raise ValueError(f"key_mask is {_kind(key_mask)}; pass torch.bool of {tokens}, True at real tokens")
    if document_ids is not None and (document_ids.shape != tokens or not _is_integer(document_ids)):
        raise ValueError(f"document_ids is {_kind(document_ids)}; pass an integer tensor of {tokens}")


def _kind(x: Tensor) -> str:
    return f"{x.dtype} of {tuple(x.shape)}"


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _check_landmarks(key: Tensor, block_size: int | None, phase: int, is_landmark: Tensor | None) -> None:
    if (block_size is None) == (is_landmark is None):
        given = "neither" if block_size is None else "both"
        raise ValueError(f"give exactly one of block_size and is_landmark; {given} was given")
    if block_size is not None:
        if block_size < 1:
            raise ValueError(f"block_size={block_size}; a block holds at least 1 ordinary token")
        if not 0 <= phase <= block_size:
            raise ValueError(f"phase={phase} is not in 0..{block_size}; take it modulo {block_size + 1}")
    if is_landmark is not None:
        if phase:
            raise ValueError(f"phase={phase} needs block_size; is_landmark gives the landmarks already")
        row, rows = (key.shape[2],), (key.shape[0], key.shape[2])
        if is_landmark.shape not in (row, rows) or is_landmark.dtype != torch.bool:
            raise ValueError(f"is_landmark is {_kind(is_landmark)}; pass torch.bool of {row} or {rows}")


def _check_numbers(scoring: Scoring) -> None:
    scale, softcap, _, dropout, _ = scoring
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"scale={scale}; give a finite number (None means 1/sqrt(head_dim))")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap={softcap}; give a positive number (None means no soft-capping)")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}; it must be in [0, 1)")


def _chosen_backend(backend: str, query: Tensor, is_landmark: Tensor | None) -> str:
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}; choose one of {', '.join(_BACKENDS)}")
    if is_landmark is not None:
        if backend in ("blockwise", "fused"):
            raise ValueError(f"backend={backend!r} needs block_size; use backend='reference' for is_landmark")
        return "reference"
    if backend == "fused":
        reason = fused.unsupported_reason(query)
        if reason is not None:
            raise ValueError(f"backend='fused' {reason}; use backend='blockwise'")
    if backend == "auto":
        return "fused" if query.device.type == "cuda" and fused.unsupported_reason(query) is None else "blockwise"
    return backend
