"""The call that a forward through a cache makes of the attention function."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from landmark.hf.attention import StreamCall
from landmark.hf.cache import LandmarkCache
from landmark.hf.chunks import Chunk, fill_padding
from landmark.hf.inputs import Inputs
from landmark.hf.rope import Scoring
from landmark.hf.sliding import SlidingWindow


@dataclass(frozen=True)
class ReadingCall(StreamCall):
    """Attention of one chunk that reads through a cache (design: chunks, memory, retrieval).

    `chunk` is None where the whole input is one chunk. The last chunk of an input has what came of the `earlier` ones:
    (chunk, output) each; for those it is None.
    """

    cache: LandmarkCache
    inputs: Inputs
    chunk: Chunk | None
    earlier: list[tuple[Chunk, Any]] | None

    @property
    def start(self) -> Tensor:
        return self.cache.stream_positions(self.stream)

    @property
    def outputs(self) -> list[Any]:
        return [output for _, output in self.earlier or ()]

    def join(self, last: Tensor, earlier: list[Tensor]) -> Tensor:
        part = self.stream.strip(last)
        if self.chunk is None or self.earlier is None:
            return part
        whole = part.new_zeros(*self.inputs.real.shape, part.shape[-1])
        chunks = [chunk for chunk, _ in self.earlier]
        for chunk, states in zip([*chunks, self.chunk], [*earlier, part], strict=True):
            chunk.put(states, whole)
        return fill_padding(whole, self.inputs.real) if self.inputs.padded else whole

    def finish(self) -> None:
        self.cache.advance(self.stream)
        if self.earlier is not None:
            tokens = self.inputs.tokens
            self.cache.count_columns(tokens if tokens.dim() == 2 else None, self.inputs.real)

    @cached_property
    def _lengths(self) -> list[int]:
        return self.stream.lengths.tolist()

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        memory = self.cache.memories[layer]
        # What a cache keeps would hold the graph of every forward otherwise.
        heads = query.detach(), key.detach(), value.detach()
        if isinstance(memory, SlidingWindow):
            out = memory.attend(*heads, self.stream.lengths, scoring)
        else:
            out = memory.attend(
                *heads,
                lengths=self._lengths,
                rotation=self.rotations[self.ropes[layer]],
                scale=scoring.scale,
                softcap=scoring.softcap,
                sinks=scoring.sinks,
            )
        return _NoGradient.apply(out, query, key, value) if torch.is_grad_enabled() else out


class _NoGradient(torch.autograd.Function):
    """The output of a memory: whoever asks for its gradient gets an error, not one that lacks queries and keys."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise ValueError(
            "reading through a LandmarkCache has no gradients: train without a cache (use_cache=False and no"
            " past_key_values), or with a landmark_reader"
        )
