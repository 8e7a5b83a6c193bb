"""Queries, keys and values of one layer, and a reader that attends to them segment by segment, without a model."""

from itertools import accumulate, pairwise
from types import SimpleNamespace

import torch
from families import family
from torch import Tensor

import landmark
from landmark.hf.calls import ENDLESS, Reader
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.stream import stream_length

DIM = 6


def rotation(positions: int = 400, dtype: torch.dtype = torch.float64) -> Rotation:
    angles = torch.outer(torch.arange(positions).double(), 30.0 ** (-torch.arange(0, DIM, 2).double() / DIM))
    angles = torch.cat((angles, angles), -1)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), "half")


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """`x [..., DIM]` rotated to any positions, negative ones too, by nothing but sines and cosines."""
    angles = positions.double()[..., None] * 30.0 ** (-torch.arange(0, DIM, 2).double() / DIM)
    first, second = x[..., : DIM // 2], x[..., DIM // 2 :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def random_layer(length: int, rows: int = 2, heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    """Query, key and value `[B,H,T,DIM]`, before rotary, that want gradients."""
    shapes = [(rows, h, length, DIM) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=torch.float64).mul(1.5).requires_grad_() for shape in shapes]


def widths(tokens: list[int], block_size: int = ENDLESS, phase: int = 0) -> list[int]:
    """Stream positions of segments of so many ordinary tokens; a landmark comes with the last token of its block."""
    ends = [stream_length(count, block_size, phase) for count in accumulate(tokens, initial=0)]
    return [end - start for start, end in pairwise(ends)]


def read(
    reader: Reader,
    qkv: list[Tensor],
    tokens: list[int],
    *,
    layer: int = 1,
    gate: Tensor | None = None,
    **scoring: object,
) -> Tensor:
    """Outputs `[B,H,T,DIM]` of the reader over segments of so many ordinary tokens.

    `gate` is the parameter that `Memorizing` finds on its layer.
    """
    module, outs = SimpleNamespace(layer_idx=layer, memory_gate=gate), []
    segments = widths(tokens, reader.block_size, reader.seen)
    for count, *parts in zip(tokens, *(x.split(segments, dim=2) for x in qkv), strict=True):
        turns = rotation(reader.reach(parts[0].shape[2]))
        outs.append(reader.attend(module, *parts, turns, Scoring(**scoring)))
        reader.seen += count
    return torch.cat(outs, dim=2)


def sharp(name: str, **changes: object) -> torch.nn.Module:
    """A tiny float64 model of a family, whose attention is far from uniform, with blocks of 7 tokens."""
    model = family(name, **changes).double()
    for name, weight in model.named_parameters():
        if any(part in name for part in ("q_proj", "k_proj", "query_key_value")):
            weight.data *= 12
    return landmark.convert(model, block_size=7, retrieve=2, local_blocks=0)
