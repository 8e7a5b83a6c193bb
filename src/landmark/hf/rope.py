"""Rotary embeddings of a model, detected by a probe and rebuilt as tables.

The attention modules of a converted model get an identity rotation, so that queries, keys and caches stay unrotated;
the attention call rotates, because it alone has the positions. A probe at conversion checks in every layer that this
gives the model's own queries and keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

# How a rotary module lays out its cos and sin tables, apart from which dimensions it pairs.
Table = Literal["concatenated", "repeated", "single"]
Style = Literal["half", "interleaved", "none"]


_PERIOD = 3  # the probe repeats this many tokens


@dataclass(frozen=True)
class Rope:
    """How one layer rotates: which dimensions it pairs (`style`), and the layout and layer type of the table."""

    style: Style = "none"
    table: Table = "single"
    layer_type: str | None = None


def rotation(rotary: nn.Module, rope: Rope, positions: int, pinned: int, like: Tensor) -> Rotation:
    """The model's rotation for positions 0..positions-1, with frequencies for a length of `pinned` positions.

    Rotary variants whose frequencies depend on length see the same length on every call, so that keys rotated in one
    forward stay valid in the next.
    """
    cos, sin = _tables(rotary, rope.layer_type, max(positions, 1), max(pinned, positions), like)
    if rope.table == "concatenated":
        cos, sin = (t[:, : t.shape[-1] // 2] for t in (cos, sin))
    elif rope.table == "repeated":
        cos, sin = cos[:, ::2], sin[:, ::2]
    if rope.style == "interleaved":
        return Rotation(cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1), rope.style)
    return Rotation(torch.cat((cos, cos), -1), torch.cat((sin, sin), -1), rope.style)


def _tables(rotary: nn.Module, layer_type: str | None, positions: int, pinned: int, like: Tensor) -> tuple:
    """Cos and sin `[positions, D]` as the rotary module lays them out."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    x = torch.zeros(1, 1, dtype=dtype, device=like.device)
    last = torch.tensor([pinned - 1], device=like.device)
    ids = torch.cat((torch.arange(positions, device=like.device), last))[None]
    arguments = () if layer_type is None else (layer_type,)
    # Dynamic variants scale frequencies to the longest text seen; only a short one resets them.
    rotary(x, torch.zeros_like(ids[:, :1]), *arguments)
    cos, sin = rotary(x, ids, *arguments)
    return cos[0, :-1].to(dtype), sin[0, :-1].to(dtype)


def identity(position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cos and sin, of the shape of `position_embeddings`, that rotate nothing."""
    cos, sin = position_embeddings
    return torch.ones_like(cos), torch.zeros_like(sin)


@dataclass
class Probe:
    """Attention call that records each layer's queries and keys; its output does not depend on rotation."""

    identity: bool
    calls: list[int] = field(default_factory=list)
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rotates(self, layer: int) -> bool:
        return self.identity

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        if query.shape[-1] != value.shape[-1]:
            raise ValueError(
                f"heads of {query.shape[-1]} key and {value.shape[-1]} value dimensions: latent attention keeps no"
                " plain keys that landmarks could stand for"
            )
        self.seen[module.layer_idx] = (query, key)  # type: ignore[index]
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1)


def find_ropes(base: nn.Module, name: str, layers: int, layer_types: list[str] | None) -> list[Rope]:
    """Detects how each layer of `base` rotates, and checks it on the layer's own queries and keys.

    `name` is the model's, for messages. Raises ValueError with the reason where rotating outside cannot reproduce the
    model's own rotation.
    """
    rotary: Any = base.rotary_emb
    typed = "layer_type" in signature(rotary.forward).parameters
    device = next(base.parameters()).device
    # Repeated tokens have equal keys unless something other than position affects them.
    ids = 2 + torch.arange(7, device=device)[None] % _PERIOD
    ids = ids % base.get_input_embeddings().num_embeddings  # type: ignore[operator]
    native, plain = Probe(False), Probe(True)
    with torch.no_grad(), evaluating(base):
        for probe in (native, plain):
            base(input_ids=ids, use_cache=False, landmark_call=probe)
    missing = sorted(set(range(layers)) - set(native.seen))
    if missing:
        raise ValueError(f"{name} drops keyword arguments on the way to attention (layers {missing}): not supported")
    twice = sorted({layer for layer in native.calls if native.calls.count(layer) > 1})
    if twice:
        raise ValueError(
            f"{name} calls its attention function more than once a layer (layers {twice}): its keys cannot be told"
            " apart in a cache, not supported"
        )
    ropes = []
    for layer in range(layers):
        if not all(close(x[..., _PERIOD:, :], x[..., :-_PERIOD, :]) for x in plain.seen[layer]):
            raise ValueError(
                f"layer {layer} of {name} rotates by code of its own, not by what transformers hands to attention: its"
                " keys cannot be read at another position, not supported"
            )
        kind = layer_types[layer] if typed and layer_types else None
        ropes.append(_detect(rotary, kind, native.seen[layer], plain.seen[layer], f"layer {layer} of {name}"))
    return ropes


def _detect(rotary: nn.Module, layer_type: str | None, native: tuple, plain: tuple, where: str) -> Rope:
    length = plain[0].shape[-2]
    if all(close(a, b) for a, b in zip(native, plain, strict=False)):
        return Rope("none")
    positions = torch.arange(length, device=plain[0].device)
    for table in get_args(Table):
        for style in get_args(Style)[:2]:
            rope = Rope(style, table, layer_type)
            tables = rotation(rotary, rope, length, length, plain[0])
            if 0 < tables.cos.shape[-1] <= plain[0].shape[-1] and all(
                close(a, tables.apply(b, positions)) for a, b in zip(native, plain, strict=False)
            ):
                return rope
    raise ValueError(
        f"{where} rotates its queries and keys in none of the ways known here (halves or neighbours, cosines before"
        " sines): landmarks could not be read at another position, not supported"
    )


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of their dtype, of the larger numbers in them."""
    if a.shape != b.shape:
        return False
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2}.get(a.dtype, 1e-5)
    return bool((a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1e-6))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, without dropout."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
