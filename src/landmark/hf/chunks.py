"""Chunked prefill and decoding through a cache: an input is cut into chunks, each of which attends by a `ChunkCall`.

Padded rows are cut so that each is read as if it were alone: padding changes no result.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landmark.hf.cache import LandmarkCache
from landmark.hf.calls import StreamCall
from landmark.hf.finite import FiniteCheck, not_finite
from landmark.hf.inputs import Inputs
from landmark.hf.sliding import SlidingWindow
from landmark.memory.decode import FewPart, FewTokens, attend_few
from landmark.ops.scoring import Scoring, working_dtype


@dataclass(frozen=True)
class Chunk:
    """The part of an input `[B, S]` that one forward reads: of row b the tokens in `columns[b]`, where `real[b]`.

    `columns` and `real` are `[B, W]`; rows that end earlier are padded on the right.
    """

    columns: Tensor
    real: Tensor

    def take(self, tokens: Tensor) -> Tensor:
        """The chunk's tokens: `[B, S]` or `[B, S, C]` to `[B, W]` or `[B, W, C]`."""
        columns = self.columns.view(*self.columns.shape, *[1] * (tokens.dim() - 2))
        return tokens.gather(1, columns.expand(*self.columns.shape, *tokens.shape[2:]))

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Writes `part [B, W, C]` to the chunk's columns of `whole [B, S, C]`."""
        row, column = self.real.nonzero(as_tuple=True)
        whole[row, self.columns[row, column]] = part[row, column]


def cut_chunks(real: Tensor, first: list[int], then: int) -> list[Chunk]:
    """Cuts an input with tokens where `real [B, S]`: `first[b]` tokens of each row, after that `then` of each.

    One chunk where every row fits its first.
    """
    counts = real.sum(1).tolist()
    # Tokens in order, then padding.
    columns = torch.argsort((~real).long(), dim=1, stable=True)
    starts, stops = [0] * len(counts), [min(count, size) for count, size in zip(counts, first, strict=True)]
    chunks = []
    while not chunks or any(stop > start for start, stop in zip(starts, stops, strict=True)):
        width = max(1, *(stop - start for start, stop in zip(starts, stops, strict=True)))
        steps = torch.arange(width, device=real.device)
        begin, end = (torch.tensor(x, device=real.device)[:, None] for x in (starts, stops))
        taken = (begin + steps).clamp(max=real.shape[1] - 1)
        chunks.append(Chunk(columns.gather(1, taken), begin + steps < end))
        starts, stops = stops, [min(count, stop + then) for count, stop in zip(counts, stops, strict=True)]
    return chunks


@dataclass(frozen=True)
class ChunkCall(StreamCall):
    """Attention of one chunk through a cache: local window, memory and retrieval (section 3.2 of the paper).

    `chunk` is None where the whole input is one chunk. `earlier` are (chunk, output) of the chunks before the last one
    of an input, and None for those themselves. `finite` is None where numbers may be anything.
    """

    cache: LandmarkCache
    inputs: Inputs
    chunk: Chunk | None
    earlier: list[tuple[Chunk, Any]] | None
    finite: FiniteCheck | None

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
        return _fill_padding(whole, self.inputs.real) if self.inputs.padded else whole

    def finish(self, hidden: Tensor, finite: bool = False) -> None:
        """As `StreamCall.finish` has it; `finite` says that `hidden` is known to be."""
        if self.finite is not None:
            if not finite:
                self.finite.watch("the output of the last layer", hidden.detach()[:, None])
            self.finite.check()  # before the chunk counts as read
        self.cache.advance(self.stream)
        if self.earlier is not None:
            tokens = self.inputs.tokens
            self.cache.count_columns(tokens if tokens.dim() == 2 else None, self.inputs.real)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        layer: int = module.layer_idx  # type: ignore[assignment]
        memory = self.cache.memory(layer)
        # Otherwise the cache would keep the autograd graph of every forward alive.
        heads = _without_gradient(query), _without_gradient(key), _without_gradient(value)
        if self.finite is not None:
            self.finite.watch(_keys_of(layer), *heads[1:])
        if isinstance(memory, SlidingWindow):
            out = memory.attend(*heads, self.stream.lengths, scoring)
        else:
            out = memory.attend(
                *heads,
                lengths=self.stream.rows,
                rotation=self.rotations[self.ropes[layer]],
                scoring=scoring,
            )
        return _NoGradient.apply(out, query, key, value) if torch.is_grad_enabled() else out

    def few(self, layer: int, tokens: FewTokens, first: int) -> FewPart | None:
        """What this chunk reads of a step, see `LayerMemory.few`."""
        memory = self.cache.memory(layer)
        if isinstance(memory, SlidingWindow):
            return None
        rotation = self.rotations[self.ropes[layer]]
        return memory.few(tokens, self.stream.width, self.stream.rows, rotation, first)

    def attend_few(self, module: nn.Module, tokens: FewTokens, scoring: Scoring) -> Any:
        """`attend` of few tokens on a CPU, without gradients: [B*T,H*Dv], an array."""
        errors: dict[int, Exception] = {}
        out = attend_side_by_side([self], module, tokens, scoring, errors)
        if errors:
            raise errors[0]
        return out


def attend_side_by_side(
    calls: list[ChunkCall], module: nn.Module, tokens: FewTokens, scoring: Scoring, errors: dict[int, Exception]
) -> Any:
    """Attention [N,H*Dv] of the chunks of `calls`, whose `tokens` stand one after another, in a few compiled calls.

    A chunk that fails adds its error to `errors`, by its number, and the others go on; those with an error are left
    out, and get 0.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    first, parts, others = 0, {}, {}
    for number, call in enumerate(calls):
        if number not in errors:
            try:
                part = call.few(layer, tokens, first)
            except Exception as error:
                errors[number] = error
            else:
                if part is None:
                    others[number] = first
                else:
                    parts[number] = part
        first += len(call.stream.rows) * call.stream.width
    if parts:
        out = attend_few(list(parts.values()), tokens, scoring)
    else:
        count, heads, _ = tokens.query.shape
        out = np.zeros((count, heads * tokens.value.shape[2]), tokens.query.dtype)
    for number, part in parts.items():
        if part.error is not None:
            errors[number] = part.error
        elif not part.finite and calls[number].finite is not None:
            errors[number] = not_finite(_keys_of(layer))
    for number, first in others.items():
        rows, width = len(calls[number].stream.rows), calls[number].stream.width
        try:
            attended = calls[number].attend(module, *tokens.tensors(first, rows, width), scoring)
            flat = attended.transpose(1, 2).reshape(rows * width, -1)
            out[first : first + rows * width] = flat.to(working_dtype(flat)).numpy()
        except Exception as error:
            errors[number] = error
    return out


def _keys_of(layer: int) -> str:
    return f"the keys or values of layer {layer}"


def _without_gradient(x: Tensor) -> Tensor:
    return x.detach() if x.requires_grad else x  # detaching, too, is an operation of every layer


class _NoGradient(torch.autograd.Function):
    """Identity whose backward raises an error: a gradient would lack the part through queries and keys."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise ValueError(
            "reading through a LandmarkCache has no gradients: train without a cache (use_cache=False and no"
            " past_key_values), or with a landmark_reader"
        )


def _fill_padding(whole: Tensor, real: Tensor) -> Tensor:
    """`whole [B, S, C]` with padding that repeats the token before it, as `Stream.strip` has it."""
    columns = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    last = columns.masked_fill(~real, 0).cummax(1).values
    return whole.gather(1, last[..., None].expand_as(whole))
