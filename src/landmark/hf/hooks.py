"""The hooks of a converted model: landmarks go in before the base model and come out behind it.

All are plain functions or small classes of this module, so that a converted model can be pickled, copied and sent
to other processes; what one forward needs travels in its keyword arguments, so that recomputation under gradient
checkpointing sees the same.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from landmark.hf.cache import LandmarkCache
from landmark.hf.calls import Reader, SegmentCall, StreamCall, WholeCall, jumping_positions, lay_out, segments_of_stream
from landmark.hf.compat import through
from landmark.hf.config import Settings, layer_kinds, text_config, trained_positions
from landmark.hf.inputs import Chunk, Inputs, cut, fill_padding
from landmark.hf.model import check_tokens, warn_untrained
from landmark.hf.rope import Rope, Scoring, identity, rotation
from landmark.hf.sequence_parallel import cut as cut_slice
from landmark.hf.sliding import SlidingWindow
from landmark.ops.rotary import Rotation
from landmark.stream import Stream, check_phase


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


# Set on a foreign cache that stays empty: who passes it again takes it for what was read.
_REPLACED = "_replaced_by_landmarks"


def unrotate(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Before an attention module: identity rotation where the attention call rotates by itself."""
    call = kwargs.get("landmark_call")
    if call is None or not call.unrotated(attention.layer_idx):
        return None
    return args, kwargs | {"position_embeddings": identity(kwargs["position_embeddings"])}


def before_base(base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Turns ordinary tokens into a stream with landmarks and decides how this forward attends."""
    if kwargs.get("landmark_call") is not None:
        return args, kwargs
    inputs = Inputs.of(base, args, kwargs)
    if inputs.tokens.dim() == 2:
        check_tokens(text_config(base.config), inputs.tokens, inputs.real)  # type: ignore[arg-type]
    cache = None if inputs.reader is not None else _cache_of(base, inputs.past, inputs.use_cache)
    if inputs.reader is not None:
        return (), _read_segments(base, inputs.reader, inputs)
    return (), _whole(base, inputs) if cache is None else _read_chunks(base, cache, inputs)


def _forward(base: nn.Module, call: StreamCall, tokens: Tensor, cache: LandmarkCache | None) -> dict[str, Any]:
    """The arguments with which the base model's own forward takes `tokens [B, S]` and their landmarks."""
    landmark = torch.tensor(Settings.of(text_config(base.config)).landmark_id, device=tokens.device)  # type: ignore[arg-type]
    # Native sliding layers rotate by the position in the stream; all others do not look at it.
    positions = call.start + torch.arange(call.stream.width, device=tokens.device)[None].expand(len(tokens), -1)
    if tokens.dim() == 3:
        landmark = base.get_input_embeddings()(landmark)  # type: ignore[operator]
    name = "input_ids" if tokens.dim() == 2 else "inputs_embeds"
    stream = {name: call.stream.insert(tokens, landmark), "position_ids": positions}
    return stream | through(base, cache) | {"landmark_call": call}


def _cache_of(base: nn.Module, past: Any, use_cache: bool) -> LandmarkCache | None:
    if isinstance(past, LandmarkCache):
        past.check_model(base.config)  # type: ignore[arg-type]
        return past
    if past is None:
        if use_cache and base.training and torch.is_grad_enabled():
            warnings.warn("use_cache=True has no effect in training: reading has no gradients", stacklevel=2)
            return None
        # Only an explicit wish for a cache reads through memory: a bare forward is the attention of training.
        return LandmarkCache(base.config) if use_cache else None  # type: ignore[arg-type]
    fresh = isinstance(past, Cache) and not getattr(past, "is_compileable", False) and past.get_seq_length() == 0
    if fresh and type(past).__name__ == "DynamicCache":
        if getattr(past, _REPLACED, False):
            raise ValueError(
                "this DynamicCache is empty, because a landmark.LandmarkCache took its place in an earlier forward: go"
                " on with the past_key_values that the output has, or pass a landmark.LandmarkCache(model.config)"
            )
        setattr(past, _REPLACED, True)
        return LandmarkCache(base.config)  # type: ignore[arg-type]
    raise ValueError(
        f"the cache is a {type(past).__name__}: a converted model reads through a landmark.LandmarkCache"
        " (leave the cache and cache_implementation out to have one made)"
    )


def _whole(base: nn.Module, inputs: Inputs) -> dict[str, Any]:
    config = text_config(base.config)  # type: ignore[arg-type]
    settings, tokens, rules = Settings.of(config), inputs.tokens, dict(inputs.rules)
    phase = rules.get("phase", 0)
    check_phase(phase, settings.block_size)
    phases = torch.full((len(tokens),), phase, device=tokens.device)
    stream = Stream.lay_out(inputs.real, phases, settings.block_size)
    documents = inputs.documents if rules.get("segments") is None else rules["segments"]
    if documents is not None:
        rules["segments"] = segments_of_stream(stream, documents)
    trained = trained_positions(config)
    if stream.width > trained:
        warnings.warn(
            f"{tokens.shape[1]} tokens take {stream.width} positions with their landmarks, the model was trained on"
            f" {trained}: pass past_key_values=landmark.LandmarkCache(model.config) to read any length",
            stacklevel=2,
        )
    positions = jumping_positions(stream.width, settings.block_size, phase, rules.pop("jumps", None), tokens.device)
    rotations = _rotations(base, int(positions.max()) + 1, trained, tokens)
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    call = WholeCall(stream, ropes, rotations, layer_kinds(config), settings.block_size, positions, **rules)
    if inputs.window_slice is not None:
        tokens, call = cut_slice(inputs.window_slice, tokens, call)
    return inputs.options | _forward(base, call, tokens, None)


def _read_chunks(base: nn.Module, cache: LandmarkCache, inputs: Inputs) -> dict[str, Any]:
    """Reads all chunks of an input but the last one, which is left to the forward that is under way."""
    warn_untrained(base)
    tokens = inputs.tokens
    first = cache.next_chunks(len(tokens), tokens.device)
    cache.check_place(inputs.before, inputs.first)
    if tokens.shape[1] <= min(first):
        *others, last = [None]
    else:
        *others, last = cut(inputs.real, first, cache.chunk_tokens)
    earlier = []
    for chunk in others:
        call, piece = _chunk(base, cache, inputs, chunk, earlier=None)
        output = base(**inputs.options | _forward(base, call, piece, cache))
        earlier.append((chunk, output))
    call, piece = _chunk(base, cache, inputs, last, earlier=earlier)
    return inputs.options | _forward(base, call, piece, cache)


def _chunk(
    base: nn.Module, cache: LandmarkCache, inputs: Inputs, chunk: Chunk | None, earlier: list[Any] | None
) -> tuple[ReadingCall, Tensor]:
    tokens, real = inputs.tokens, inputs.real
    if chunk is not None:
        tokens, real = chunk.take(tokens), chunk.real
    stream = Stream.lay_out(real, cache.tokens(len(tokens), tokens.device), cache.settings.block_size)
    needed = cache.positions_needed(stream)
    rotations = cache.rotations(needed, lambda reach: _rotations(base, reach, cache.trained_positions, tokens))
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    kinds = layer_kinds(base.config)  # type: ignore[arg-type]
    cache.begin()
    return ReadingCall(stream, ropes, rotations, kinds, cache, inputs, chunk, earlier), tokens


def _read_segments(base: nn.Module, reader: Reader, inputs: Inputs) -> dict[str, Any]:
    """Reads all segments of an input but the last one, which is left to the forward that is under way."""
    config: Any = base.config
    if "sliding" in layer_kinds(config):
        raise ValueError("a landmark_reader attends in every layer, and this model has sliding layers of its own")
    if base.training and any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        raise ValueError("a landmark_reader carries states: switch gradient checkpointing off to train with one")
    *others, last = inputs.tokens.split(reader.segment, dim=1)
    earlier = [base(**{inputs.name: piece}, landmark_reader=reader, **inputs.options) for piece in others]
    stream = lay_out(reader, last)
    rotations = _rotations(base, reader.reach(stream.width), trained_positions(config), last)
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    call = SegmentCall(stream, ropes, rotations, layer_kinds(config), reader, earlier)
    return inputs.options | _forward(base, call, last, None)


def _rotations(base: nn.Module, positions: int, pinned: int, tokens: Tensor) -> dict[Rope, Rotation]:
    like = torch.empty(0, dtype=base.dtype, device=tokens.device)  # type: ignore[arg-type]
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    return {rope: rotation(base.rotary_emb, rope, positions, pinned, like) for rope in set(ropes)}  # type: ignore[arg-type]


def behind_base(base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Proves that every layer attended through the call, takes the landmarks out and joins chunks and segments."""
    call = kwargs.get("landmark_call")
    if not isinstance(call, StreamCall):
        return output
    call.check()
    call.finish()
    # Tuples and named outputs alike; the parts of one forward have the same fields.
    parts = [list(out) if isinstance(out, tuple) else list(out.values()) for out in (output, *call.outputs)]
    joined = [_joined(call, *same) for same in zip(*parts, strict=True)]
    if isinstance(output, tuple):
        return tuple(joined)
    for name, part in zip(list(output), joined, strict=True):
        output[name] = part
    return output


def _joined(call: StreamCall, last: Any, *earlier: Any) -> Any:
    """Of hidden states `[B, T, C]` and router logits `[B * T, E]`, or a tuple of them, those of the input's tokens.

    All else stays as it is.
    """
    if isinstance(last, Tensor) and last.dim() == 3:
        return call.join(last, list(earlier))
    if isinstance(last, Tensor) and last.dim() == 2:
        rows = (len(call.stream.lengths), -1)
        return call.join(last.unflatten(0, rows), [part.unflatten(0, rows) for part in earlier]).flatten(0, 1)
    if isinstance(last, tuple):
        return tuple(_joined(call, *layer) for layer in zip(last, *earlier, strict=True))
    return last
