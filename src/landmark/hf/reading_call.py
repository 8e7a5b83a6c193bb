"""The call that a forward through a cache makes of the attention function."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from landmark.hf.attention import StreamCall
from landmark.hf.cache import LandmarkCache
from landmark.hf.rope import Scoring
from landmark.hf.sliding import SlidingWindow


@dataclass(frozen=True)
class ReadingCall(StreamCall):
    """Attention of one chunk that reads through a cache (design: chunks, memory, retrieval)."""

    cache: LandmarkCache
    earlier: list[Any]  # outputs of the chunks of the same input that were read before this one

    def advance(self) -> None:
        """Counts the chunk as read."""
        self.cache.advance(self.stream, self.stream.place.shape[1])

    @cached_property
    def _lengths(self) -> list[int]:
        return self.stream.lengths.tolist()

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        memory = self.cache.memories[layer]
        if isinstance(memory, SlidingWindow):
            return memory.attend(query, key, value, self.stream.lengths, scoring)
        return memory.attend(
            query,
            key,
            value,
            lengths=self._lengths,
            rotation=self.rotations[self.ropes[layer]],
            scale=scoring.scale,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
        )
