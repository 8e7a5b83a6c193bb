"""The attention function of converted models, and the call that a forward without a cache makes of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from landmark.hf.compat import UnsupportedRelease, installed
from landmark.hf.rope import AttentionCall, Rope, Scoring
from landmark.hf.sliding import sliding_attention
from landmark.ops.attention import landmark_attention
from landmark.ops.rotary import Rotation
from landmark.stream import Stream

NAME = "landmark"


class CalledOutside(ValueError):
    """A layer called the attention without the keyword argument that a converted model hands on to it."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    landmark_call: AttentionCall | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in the form transformers asks for: `[B,H,T,D]` in, `[B,T,H,D]` out, no weights.

    The model around it says through `landmark_call` what the forward is: training, reading, or a probe.
    """
    if landmark_call is None:
        raise CalledOutside(
            "the attention implementation 'landmark' was called without a word of how to attend: call"
            " landmark.convert(model), or choose another attn_implementation; if the model is converted, the installed"
            f" transformers drops keyword arguments on the way to attention ({installed()})"
        )
    landmark_call.calls.append(module.layer_idx)  # type: ignore[arg-type]
    # Under autocast a model's rotation, the identity too, leaves queries and keys in float32 beside 16-bit values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scoring = Scoring(scaling, dropout, sliding_window, softcap, s_aux)
    out = landmark_call.attend(module, query, key, value, scoring)
    return out.transpose(1, 2).contiguous(), None


# No mask function is registered under this name, so transformers builds no [T, T] mask.
AttentionInterface.register(NAME, attention_forward)


@dataclass(frozen=True)
class StreamCall:
    """What every forward over a stream of tokens and landmarks knows of it.

    `calls` lists the layers that attended by this call so far.
    """

    stream: Stream
    ropes: list[Rope]
    rotations: dict[Rope, Rotation]
    kinds: list[str]
    calls: list[int] = field(default_factory=list, kw_only=True)

    def unrotated(self, layer: int) -> bool:
        return self.kinds[layer] == "landmark" and self.ropes[layer].style != "none"

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """The attention of one layer, see `AttentionCall`."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises UnsupportedRelease unless each layer attended by this call exactly once."""
        for layer in range(len(self.kinds)):
            if self.calls.count(layer) != 1:
                raise UnsupportedRelease(
                    f"layer {layer} attended {self.calls.count(layer)} times through landmark attention in one forward"
                    " instead of once (was set_attn_implementation() called after conversion? landmark.convert(model)"
                    " puts that right)"
                )

    @property
    def start(self) -> int | Tensor:
        """Stream position of the first token, or of each row's `[B, 1]`."""
        return 0

    @property
    def outputs(self) -> list[Any]:
        """What the base model gave for the parts of the same input that were read before this one."""
        return []

    def join(self, last: Tensor, earlier: list[Tensor]) -> Tensor:
        """Of hidden states `last [B, T, C]` of this stream, and those of the earlier parts, those of the input."""
        return torch.cat([*earlier, self.stream.strip(last)], 1)

    def finish(self) -> None:
        """Counts what was read, once every layer has attended."""


@dataclass(frozen=True)
class WholeCall(StreamCall):
    """Section 3.1 of the paper over a whole input: what training sees, and any forward without a cache.

    `positions [T]` or `[B, T]` are rotary positions. Without `gates` landmarks are read as tokens of plain attention.
    `block_dropout` is the probability that a layer closes a block to all later queries of its row. `segments [B, T]`
    are documents packed into one window: a query sees tokens, and blocks by their landmark, of its own document only.
    """

    block_size: int
    positions: Tensor
    phase: int = 0
    gates: bool = True
    block_dropout: float = 0.0
    segments: Tensor | None = None

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        if self.kinds[layer] == "sliding":
            place = torch.arange(query.shape[-2], device=query.device)[None]
            return sliding_attention(query, key, value, place, place, scoring, self.segments)
        if self.unrotated(layer):
            rotation = self.rotations[self.ropes[layer]]
            positions = self.positions if self.positions.dim() == 1 else self.positions[:, None]
            query, key = rotation.apply(query, positions), rotation.apply(key, positions)
        if not self.gates:
            return _plain_causal(query, key, value, scoring, self.segments)
        return landmark_attention(
            query,
            key,
            value,
            block_size=self.block_size,
            phase=self.phase,
            scale=scoring.scale,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
            key_mask=self._open_blocks(key) if self.block_dropout else None,
            segment_ids=self.segments,
            dropout=scoring.dropout,
        )

    def _open_blocks(self, key: Tensor) -> Tensor:
        """Mask `[B, T]` that hides the landmarks of dropped blocks; all else stays in sight."""
        place = torch.arange(key.shape[2], device=key.device)
        landmark = (place + self.phase) % (self.block_size + 1) == self.block_size
        dropped = torch.rand(key.shape[0], key.shape[2], device=key.device) < self.block_dropout
        return ~(dropped & landmark)


def jumping_positions(width: int, block_size: int, phase: int, jumps: Tensor | None, device: torch.device) -> Tensor:
    """Rotary positions of a window of `width`: `[T]`, or `[B, T]` that advance by `jumps [B, n]` after each landmark.

    The positional augmentation of the paper's appendix E: distances within a block stay what they are, blocks stand
    farther apart than they are. Raises ValueError for fewer jumps than the window has landmarks.
    """
    place = torch.arange(width, device=device)
    if jumps is None:
        return place
    before = (place + phase) // (block_size + 1)  # landmarks before each position
    if jumps.dim() != 2 or jumps.shape[1] < int(before[-1]) or bool((jumps < 0).any()):
        raise ValueError(f"jumps {tuple(jumps.shape)}: give {int(before[-1])} numbers of 0 or more for each row")
    return place + torch.nn.functional.pad(jumps, (1, 0)).cumsum(1)[:, before]


def segments_of_stream(stream: Stream, segments: Tensor) -> Tensor:
    """Documents of stream positions `[B, T]` from those of ordinary tokens, `segments [B, S]`.

    A landmark belongs to the document of the token before it. It opens its block to that document alone, which loses
    nothing: a document that ended earlier in the block has no later query. Places behind a row's end mean nothing.
    Raises ValueError unless there is one whole number for each token.
    """
    shape = tuple(stream.place.shape)
    if not isinstance(segments, Tensor) or segments.shape != shape or segments.dtype not in (torch.int32, torch.long):
        given = f"{segments.dtype} of {tuple(segments.shape)}" if isinstance(segments, Tensor) else repr(segments)
        raise ValueError(f"landmark_segments is {given}: give a tensor of whole numbers, one for each token of {shape}")
    segments = segments.to(stream.place.device)
    nothing = segments.new_zeros(())
    ordinary = stream.insert(torch.ones_like(segments), nothing) == 1
    laid = stream.insert(segments, nothing)
    return torch.where(ordinary, laid, laid.roll(1, dims=1))


def _plain_causal(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, segments: Tensor | None) -> Tensor:
    """Causal attention that reads landmarks as tokens: one block without an end."""
    scale, dropout, _, softcap, sinks = scoring
    if softcap is None and sinks is None and segments is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=True
        )
    return landmark_attention(
        query,
        key,
        value,
        block_size=key.shape[-2],  # its landmark would stand behind the last key
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        segment_ids=segments,
        dropout=dropout,
    )


ENDLESS = 1 << 62  # a block so long that no landmark ever ends it


class Reader(ABC):
    """Attention over a text that comes in segments of at most `segment` ordinary tokens; all rows of a batch alike.

    `block_size` is `ENDLESS` where streams have no landmarks. `seen` counts the ordinary tokens read, beginning with
    those of the first block that lie before the text (the phase of a training window).
    """

    block_size = ENDLESS

    def __init__(self, segment: int, *, phase: int = 0) -> None:
        if segment < 1:
            raise ValueError(f"a segment has {segment} tokens: give 1 or more")
        self.segment = segment
        self.seen = phase

    @abstractmethod
    def reach(self, width: int) -> int:
        """Rotary positions that are needed to attend over a segment of `width` stream positions."""

    @abstractmethod
    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, s: Scoring) -> Tensor:
        """`query [B,H,T,D]`, `key`, `value [B,Hkv,T,D]`, before rotary, to `[B,H,T,D]`; carries what is to be carried.

        `module` is the attention module of the layer, `module.layer_idx` its number.
        """


@dataclass(frozen=True)
class SegmentCall(StreamCall):
    """Attention of one segment, by a reader."""

    reader: Reader
    earlier: list[Any]  # outputs of the segments of the same input that were read before this one

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        rotation = self.rotations[self.ropes[module.layer_idx]]  # type: ignore[index]
        return self.reader.attend(module, query, key, value, rotation, scoring)

    @property
    def outputs(self) -> list[Any]:
        return self.earlier

    def finish(self) -> None:
        self.reader.seen += self.stream.place.shape[1]


def lay_out(reader: Reader, tokens: Tensor) -> Stream:
    """The stream of one segment `[B, S]` behind what the reader has seen."""
    real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return Stream.lay_out(real, torch.full((len(tokens),), reader.seen, device=tokens.device), reader.block_size)
