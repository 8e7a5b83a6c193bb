"""The hooks of a converted model: landmarks go in before the base model and come out behind it.

All are plain functions or small classes of this module, so that a converted model can be pickled, copied and sent
to other processes; what one forward needs travels in its keyword arguments, so that recomputation under gradient
checkpointing sees the same.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from landmark.blocks import Stream, check_phase
from landmark.hf.attention import WholeCall, jumping_positions, segments_of_stream
from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_argument, renamed_cache, through
from landmark.hf.model import check_tokens, warn_untrained
from landmark.hf.reading_call import ReadingCall
from landmark.hf.rope import Rope, identity, rotation
from landmark.hf.segments import Reader, SegmentCall, lay_out
from landmark.hf.sequence import SlicedCall, cut
from landmark.hf.settings import Settings, layer_kinds, text_config, trained_positions
from landmark.ops.rotary import Rotation

INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "use_cache")
# Keyword arguments, behind "landmark_", that change the attention of training: see `WholeCall`.
RULES = ("phase", "gates", "jumps", "block_dropout", "segments")


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
    if len(args) > 1:
        raise ValueError("pass everything but input_ids to a converted model by keyword")
    kwargs = dict(kwargs) | ({"input_ids": args[0]} if args else {})
    rules = {name: kwargs.pop("landmark_" + name) for name in RULES if "landmark_" + name in kwargs}
    reader = kwargs.pop("landmark_reader", None)
    window_slice = kwargs.pop("landmark_slice", None)
    name = cache_argument(base)
    kwargs = renamed_cache(base, kwargs)
    inputs = {name: kwargs.pop(name, None) for name in INPUTS} | {"past": kwargs.pop(name, None)}
    tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
    if tokens is None:
        raise ValueError("pass input_ids or inputs_embeds")
    real = _real_tokens(inputs["attention_mask"], tokens)
    if inputs["input_ids"] is not None:
        check_tokens(text_config(base.config), tokens, real)  # type: ignore[arg-type]
    cache = None if reader is not None else _cache_of(base, inputs["past"], inputs["use_cache"])
    if rules and (cache is not None or reader is not None):
        raise ValueError(f"{', '.join('landmark_' + name for name in rules)}: for forwards without a cache or a reader")
    if window_slice is not None and (cache is not None or reader is not None or inputs["attention_mask"] is not None):
        raise ValueError("landmark_slice: for forwards without a cache, a reader or padding")
    if reader is not None:
        _check_segments(base, inputs)
        tokens, earlier = _read_all_but_the_last_segment(base, reader, tokens, kwargs)
        stream, call = _segment(base, reader, tokens, earlier)
    elif cache is None:
        stream, call = _whole(base, tokens, real, rules)
        if window_slice is not None:
            tokens, stream, call = cut(window_slice, tokens, stream, call)
    else:
        warn_untrained(base)
        tokens, real, earlier = _read_all_but_the_last_chunk(base, cache, tokens, real, kwargs)
        stream, call = _chunk(base, cache, tokens, real, earlier)
    return (), kwargs | _stream_inputs(base, stream, call, tokens) | {
        name: cache,
        "use_cache": cache is not None,
        "landmark_call": call,
    }


def _stream_inputs(base: nn.Module, stream: Stream, call: Any, tokens: Tensor) -> dict[str, Tensor]:
    landmark_id = Settings.of(text_config(base.config)).landmark_id  # type: ignore[arg-type]
    landmark = torch.tensor(landmark_id, device=tokens.device)
    # Native sliding layers rotate by the position in the stream; all others do not look at it.
    start = call.start if isinstance(call, SlicedCall) else 0
    start = call.cache.stream_positions(stream) if isinstance(call, ReadingCall) else start
    positions = start + torch.arange(stream.width, device=tokens.device)[None].expand(len(tokens), -1)
    if tokens.dim() == 3:
        embedding = base.get_input_embeddings()(landmark)  # type: ignore[operator]
        return {"inputs_embeds": stream.insert(tokens, embedding), "position_ids": positions}
    return {"input_ids": stream.insert(tokens, landmark), "position_ids": positions}


def _real_tokens(mask: Any, tokens: Tensor) -> Tensor:
    shape = tokens.shape[:2]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=tokens.device)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != shape[0] or mask.shape[1] < shape[1]:
        given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask is {given}: a converted model takes [batch, tokens], ones for real tokens")
    return mask[:, mask.shape[1] - shape[1] :].to(tokens.device) != 0


def _cache_of(base: nn.Module, past: Any, use_cache: bool | None) -> LandmarkCache | None:
    if isinstance(past, LandmarkCache):
        return past
    if past is None:
        # Only an explicit wish for a cache reads through memory: a bare forward is the attention of training.
        return LandmarkCache(base.config) if use_cache else None  # type: ignore[arg-type]
    fresh = isinstance(past, Cache) and not getattr(past, "is_compileable", False) and past.get_seq_length() == 0
    if fresh and type(past).__name__ == "DynamicCache":
        return LandmarkCache(base.config)  # type: ignore[arg-type]
    raise ValueError(
        f"past_key_values is a {type(past).__name__}: a converted model reads through a landmark.LandmarkCache"
        " (leave past_key_values and cache_implementation out to have one made)"
    )


def _whole(base: nn.Module, tokens: Tensor, real: Tensor, rules: dict[str, Any]) -> tuple[Stream, WholeCall]:
    config = text_config(base.config)  # type: ignore[arg-type]
    settings = Settings.of(config)
    phase = rules.get("phase", 0)
    check_phase(phase, settings.block_size)
    stream = Stream.lay_out(real, torch.full((len(tokens),), phase, device=tokens.device), settings.block_size)
    if rules.get("segments") is not None:
        rules["segments"] = segments_of_stream(stream, rules["segments"])
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
    kinds = layer_kinds(config)
    return stream, WholeCall(stream, ropes, rotations, kinds, settings.block_size, positions, **rules)


def _check_segments(base: nn.Module, inputs: dict[str, Any]) -> None:
    """Raises ValueError for what readers of segments cannot serve."""
    if inputs["attention_mask"] is not None or inputs["past"] is not None:
        raise ValueError("a landmark_reader reads rows of one length and is its own cache: pass input_ids alone")
    if "sliding" in layer_kinds(base.config):  # type: ignore[arg-type]
        raise ValueError("a landmark_reader attends in every layer, and this model has sliding layers of its own")
    if base.training and any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        raise ValueError("a landmark_reader carries states: switch gradient checkpointing off to train with one")


def _segment(base: nn.Module, reader: Reader, tokens: Tensor, earlier: list[Any]) -> tuple[Stream, SegmentCall]:
    stream = lay_out(reader, tokens)
    pinned = trained_positions(base.config)  # type: ignore[arg-type]
    rotations = _rotations(base, reader.reach(stream.width), pinned, tokens)
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    return stream, SegmentCall(stream, ropes, rotations, layer_kinds(base.config), reader, earlier)  # type: ignore[arg-type]


def _chunk(
    base: nn.Module, cache: LandmarkCache, tokens: Tensor, real: Tensor, earlier: list[Any]
) -> tuple[Stream, ReadingCall]:
    seen = cache.tokens(len(tokens), tokens.device)
    settings = cache.settings
    stream = Stream.lay_out(real, seen, settings.block_size)
    if settings.positions == "true":
        needed = int(cache.stream_positions(stream).max()) + stream.width
        if needed > cache.trained_positions:
            raise ValueError(
                f'positions="true" carries {cache.trained_positions} positions, the trained range, and this text'
                f' reaches {needed}, landmarks included: use positions="stingy" or a shorter text'
            )
    else:
        needed = (settings.top_k + 1 + settings.local_blocks + 1) * settings.stride + stream.width
    rotations = cache.rotations(needed, lambda reach: _rotations(base, reach, cache.trained_positions, tokens))
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    kinds = layer_kinds(base.config)  # type: ignore[arg-type]
    return stream, ReadingCall(stream, ropes, rotations, kinds, cache, earlier)


def _rotations(base: nn.Module, positions: int, pinned: int, tokens: Tensor) -> dict[Rope, Rotation]:
    like = torch.empty(0, dtype=base.dtype, device=tokens.device)  # type: ignore[arg-type]
    ropes: list[Rope] = base.landmark_ropes  # type: ignore[assignment]
    return {rope: rotation(base.rotary_emb, rope, positions, pinned, like) for rope in set(ropes)}  # type: ignore[arg-type]


def _read_all_but_the_last_chunk(
    base: nn.Module, cache: LandmarkCache, tokens: Tensor, real: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, list[Any]]:
    """Cuts an input that is longer than a chunk; the last chunk is left to the forward that is under way."""
    name = "input_ids" if tokens.dim() == 2 else "inputs_embeds"
    earlier = []
    while tokens.shape[1] > (fits := cache.next_chunk):
        piece, tokens = tokens[:, :fits], tokens[:, fits:]
        mask, real = real[:, :fits], real[:, fits:]
        earlier.append(base(**{name: piece}, attention_mask=mask, **through(base, cache), **options))
    return tokens, real, earlier


def _read_all_but_the_last_segment(
    base: nn.Module, reader: Reader, tokens: Tensor, options: dict[str, Any]
) -> tuple[Tensor, list[Any]]:
    *others, last = tokens.split(reader.segment, dim=1)
    name = "input_ids" if tokens.dim() == 2 else "inputs_embeds"
    return last, [base(**{name: piece}, landmark_reader=reader, **options) for piece in others]


def behind_base(base: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Takes the landmarks out again and joins the chunks of a long input."""
    call = kwargs.get("landmark_call")
    if not isinstance(call, WholeCall | ReadingCall | SegmentCall):
        return output
    earlier = []
    if not isinstance(call, WholeCall):
        call.advance()
        earlier = call.earlier
    strip = call.stream.strip
    if isinstance(output, tuple):
        return (torch.cat([*(out[0] for out in earlier), strip(output[0])], 1), *output[1:])
    output.last_hidden_state = torch.cat([*(o.last_hidden_state for o in earlier), strip(output.last_hidden_state)], 1)
    if getattr(output, "hidden_states", None) is not None:
        pieces = [*(o.hidden_states for o in earlier), [strip(h) for h in output.hidden_states]]
        output.hidden_states = tuple(torch.cat(layer, 1) for layer in zip(*pieces, strict=False))
    return output
