"""The hooks of a converted model: landmarks are inserted before the base model and removed from its output.

All are plain functions, so that a converted model can be pickled, copied and sent to other processes. What one forward
needs travels in its keyword arguments, so that recomputation under gradient checkpointing sees the same.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from landmark.hf.cache import LandmarkCache
from landmark.hf.calls import Reader, SegmentCall, StreamCall, WholeCall, documents_of_stream, jumping_positions
from landmark.hf.chunks import Chunk, ChunkCall, cut_chunks
from landmark.hf.compat import cache_kwargs
from landmark.hf.config import landmark_settings, layer_kinds, text_config, trained_positions
from landmark.hf.finite import FiniteCheck
from landmark.hf.inputs import Inputs
from landmark.hf.model import check_tokens, warn_untrained
from landmark.hf.rope import Rope, identity, rotation
from landmark.hf.sequence_parallel import cut_slice
from landmark.ops.rotary import Rotation
from landmark.stream import Stream, check_phase

# Marks an empty cache of transformers that was replaced: it stays empty, so passing it again would lose the text.
_REPLACED = "_replaced_by_landmarks"


def attention_pre_hook(
    attention: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """Replaces the rotation of an attention module by the identity where the attention call rotates."""
    call = kwargs.get("landmark_call")
    if call is None or not call.rotates(attention.layer_idx):
        return None
    return args, kwargs | {"position_embeddings": identity(kwargs["position_embeddings"])}


def base_pre_hook(base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Inserts landmarks into the input and chooses the attention call of this forward.

    Of an input of several chunks or segments, all but the last are read by forwards of their own in here.
    """
    if kwargs.get("landmark_call") is not None:
        return args, kwargs
    inputs = Inputs.of(base, args, kwargs)
    if inputs.tokens.dim() == 2:
        check_tokens(text_config(base.config), inputs.tokens, inputs.real)  # type: ignore[arg-type]
    if inputs.reader is not None:
        return (), _read_segments(base, inputs.reader, inputs)
    cache = _cache_of(base, inputs.past, inputs.use_cache)
    return (), _read_whole(base, inputs) if cache is None else _read_chunks(base, cache, inputs)


def forward_arguments(base: nn.Module, call: StreamCall, tokens: Tensor, cache: LandmarkCache | None) -> dict[str, Any]:
    """Keyword arguments for the base model's own forward over `tokens [B, S]` and their landmarks."""
    landmark = torch.tensor(landmark_settings(base.config).landmark_id, device=tokens.device)  # type: ignore[arg-type]
    # Native sliding layers rotate by the stream position; all others ignore it.
    positions = call.start + torch.arange(call.stream.width, device=tokens.device)[None].expand(len(tokens), -1)
    if tokens.dim() == 3:
        landmark = base.get_input_embeddings()(landmark)  # type: ignore[operator]
    name = "input_ids" if tokens.dim() == 2 else "inputs_embeds"
    stream = {name: call.stream.insert(tokens, landmark), "position_ids": positions}
    return stream | cache_kwargs(base, cache) | {"landmark_call": call}


def _cache_of(base: nn.Module, past: Any, use_cache: bool) -> LandmarkCache | None:
    """The cache to read through: `past`, a new one for `use_cache`, or None; ValueError for other kinds of cache."""
    if isinstance(past, LandmarkCache):
        past.check_model(base.config)  # type: ignore[arg-type]
        return past
    if past is None:
        if use_cache and base.training and torch.is_grad_enabled():
            warnings.warn("use_cache=True has no effect in training: reading has no gradients", stacklevel=2)
            return None
        # Only an explicit use_cache reads through memory: a forward without it is the attention of training.
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


def _read_whole(base: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The arguments of a forward without a cache, over the whole input at once."""
    config = text_config(base.config)  # type: ignore[arg-type]
    settings, tokens, training = landmark_settings(config), inputs.tokens, dict(inputs.training)
    phase = training.get("phase", 0)
    check_phase(phase, settings.block_size)
    phases = torch.full((len(tokens),), phase, device=tokens.device)
    stream = Stream.lay_out(inputs.real, phases, settings.block_size)
    documents = inputs.documents if training.get("documents") is None else training["documents"]
    if documents is not None:
        training["documents"] = documents_of_stream(stream, documents)
    trained = trained_positions(config)
    if stream.width > trained:
        warnings.warn(
            f"{tokens.shape[1]} tokens take {stream.width} positions with their landmarks, the model was trained on"
            f" {trained}: pass past_key_values=landmark.LandmarkCache(model.config) to read any length",
            stacklevel=2,
        )
    jumps = training.pop("jumps", None)
    positions = jumping_positions(stream.width, settings.block_size, phase, jumps, tokens.device)
    rotations = _rotations(base, int(positions.max()) + 1, trained, tokens)
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    call = WholeCall(stream, ropes, rotations, layer_kinds(config), settings.block_size, positions, **training)
    if inputs.window_slice is not None:
        tokens, call = cut_slice(inputs.window_slice, tokens, call)
    return inputs.options | forward_arguments(base, call, tokens, None)


def _read_chunks(base: nn.Module, cache: LandmarkCache, inputs: Inputs) -> dict[str, Any]:
    """Prefills all chunks of an input but the last; returns the arguments for that one, the forward under way."""
    warn_untrained(base)
    tokens = inputs.tokens
    first = cache.next_chunks(len(tokens), tokens.device)
    cache.check_position(inputs.before, inputs.first)
    if tokens.shape[1] <= min(first):
        *others, last = [None]
    else:
        *others, last = cut_chunks(inputs.real, first, cache.chunk_tokens)
    earlier = []
    for chunk in others:
        call, piece = chunk_call(base, cache, inputs, chunk, earlier=None)
        output = base(**inputs.options | forward_arguments(base, call, piece, cache))
        earlier.append((chunk, output))
    call, piece = chunk_call(base, cache, inputs, last, earlier=earlier)
    return inputs.options | forward_arguments(base, call, piece, cache)


def chunk_call(
    base: nn.Module, cache: LandmarkCache, inputs: Inputs, chunk: Chunk | None, earlier: list[Any] | None
) -> tuple[ChunkCall, Tensor]:
    """The attention call of one chunk, and its tokens."""
    tokens, real = inputs.tokens, inputs.real
    if chunk is not None:
        tokens, real = chunk.take(tokens), chunk.real
    stream = Stream.lay_out(real, cache.tokens(len(tokens), tokens.device), cache.settings.block_size)
    needed = cache.positions_needed(stream)
    rotations = cache.rotations(needed, lambda reach: _rotations(base, reach, cache.trained_positions, tokens))
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    finite = None if cache.settings.reading.allow_nonfinite else FiniteCheck(stream)
    cache.begin()
    return ChunkCall(stream, ropes, rotations, cache.kinds, cache, inputs, chunk, earlier, finite), tokens


def _read_segments(base: nn.Module, reader: Reader, inputs: Inputs) -> dict[str, Any]:
    """Reads all segments of an input but the last; returns the arguments for that one, the forward under way."""
    config: Any = base.config
    if "sliding" in layer_kinds(config):
        raise ValueError("a landmark_reader attends in every layer, and this model has sliding layers of its own")
    *others, last = inputs.tokens.split(reader.segment, dim=1)
    again = base.training and any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    if again and (others or not reader.recomputable):
        raise ValueError("a landmark_reader carries states: switch gradient checkpointing off to train with one")
    earlier = [base(**{inputs.name: piece}, landmark_reader=reader, **inputs.options) for piece in others]
    stream = reader.lay_out(last)
    rotations = _rotations(base, reader.reach(stream.width), trained_positions(config), last)
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    call = SegmentCall(stream, ropes, rotations, layer_kinds(config), reader, earlier)
    return inputs.options | forward_arguments(base, call, last, None)


def _rotations(base: nn.Module, positions: int, pinned: int, tokens: Tensor) -> dict[Rope, Rotation]:
    """Rotary tables of all layers for positions 0..positions-1, see `rope.rotation`."""
    like = torch.empty(0, dtype=base.dtype, device=tokens.device)  # type: ignore[arg-type]
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    return {rope: rotation(base.rotary_emb, rope, positions, pinned, like) for rope in set(ropes)}  # type: ignore[arg-type]


def base_hook(base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Checks that every layer attended, removes the landmarks from the output and joins chunks or segments."""
    call = kwargs.get("landmark_call")
    if not isinstance(call, StreamCall):
        return output
    call.check()
    # Tuples and named outputs alike; the parts of one forward have the same fields.
    parts = [list(out) if isinstance(out, tuple) else list(out.values()) for out in (output, *call.outputs)]
    call.finish(parts[0][0])
    joined = [_joined(call, *same) for same in zip(*parts, strict=True)]
    if isinstance(output, tuple):
        return tuple(joined)
    for name, part in zip(list(output), joined, strict=True):
        output[name] = part
    return output


def _joined(call: StreamCall, last: Any, *earlier: Any) -> Any:
    """Hidden states `[B, T, C]` or router logits `[B * T, E]`, or a tuple of them, for the input's tokens alone.

    All else is returned unchanged.
    """
    if isinstance(last, Tensor) and last.dim() == 3:
        return call.join(last, list(earlier))
    if isinstance(last, Tensor) and last.dim() == 2:
        rows = (len(call.stream.lengths), -1)
        return call.join(last.unflatten(0, rows), [part.unflatten(0, rows) for part in earlier]).flatten(0, 1)
    if isinstance(last, tuple):
        return tuple(_joined(call, *layer) for layer in zip(last, *earlier, strict=True))
    return last
