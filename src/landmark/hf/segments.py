"""Reading a text in segments, each layer carrying something of what it read: what a `landmark_reader` must be.

A reader travels through a forward of a converted model as the keyword argument `landmark_reader`. The input is cut into
its segments, and outputs come back joined. Peers of landmark attention (Transformer-XL, streaming windows, retrieval of
single keys) are readers of streams without landmarks, so that they differ from it in nothing but attention.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landmark.blocks import Stream
from landmark.hf.attention import StreamCall
from landmark.hf.rope import Scoring
from landmark.ops.rotary import Rotation

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
