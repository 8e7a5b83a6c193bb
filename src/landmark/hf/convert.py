"""Conversion of a Hugging Face decoder to landmark attention, and loading of converted models."""

from copy import deepcopy
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from landmark.files import written_whole
from landmark.hf import attention
from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.hf.config import (
    chunk_tokens,
    is_converted,
    landmark_settings,
    layer_kinds,
    text_config,
    trained_positions,
)
from landmark.hf.decoder_layer import serve_few_tokens
from landmark.hf.hooks import attention_pre_hook, base_hook, base_pre_hook
from landmark.hf.int8 import check_weights, with_weights
from landmark.hf.linear import serve_few_rows
from landmark.hf.loading import (
    gguf_model,
    hub_options,
    is_gguf,
    read_config,
    read_tokenizer,
    read_weights,
    with_dtype,
)
from landmark.hf.model import install_mixin, ordinary_tokens, rows_of_tokens, saved_rows, store_settings
from landmark.hf.refusals import check_model, check_parts, check_rows_can_be_added
from landmark.hf.rope import evaluating, find_ropes, rotation
from landmark.hf.step_graph import serve_steps
from landmark.limits import is_whole
from landmark.settings import DEFAULT_BLOCK_SIZE, LandmarkSettings, ReadingChanges


def convert(
    model: PreTrainedModel,
    *,
    block_size: int | None = None,
    landmark_id: int | None = None,
    trained_tokens: int | None = None,
    **reading: Unpack[ReadingChanges],
) -> PreTrainedModel:
    """Converts `model`, any rotary decoder, to landmark attention, in place; returns the same object.

    Afterwards a forward without a cache computes the grouped softmax over the whole input (Mohtashami & Jaggi 2023,
    section 3.1). A forward with a `LandmarkCache`, which `generate()` makes by default, reads through memory (section
    3.2). Inputs, labels and logits have ordinary tokens only: landmarks are inserted and removed inside.

    Args:
        model: a causal language model with its weights loaded.
        block_size: ordinary tokens per block, 63 by default; a landmark follows each block.
        landmark_id: row of the vocabulary that becomes the landmark and is never generated. By default a new row, the
            mean of all others, which `config.vocab_size` does not count. A row that is not the last keeps a logit, 100
            nats below all others together.
        trained_tokens: ordinary tokens that the model was trained on with landmarks, 0 by default; `landmark train`
            counts them. Reading through memory with a model of 0 warns once.
        reading: defaults of the model's caches, the fields of `ReadingSettings`. `selection="per_head"` looks ahead
            within a chunk: queries of a chunk share their blocks, so that predictions depend on later tokens of it, and
            a perplexity measured with it is not one of next-token predictions.

    Converting again changes the settings given and nothing else, but for `trained_tokens`, which another block size
    sets to 0; it also restores landmark attention if another attention implementation was set in between.

    Raises ValueError, naming the reason, for models that cannot work (no rotary positions, latent attention, dropped
    keyword arguments), for models whose outputs conversion would change, and for settings that leave no room for a
    chunk in the trained range.
    """
    check_model(model)
    config = text_config(model.config)
    base: Any = model.base_model
    kinds = layer_kinds(config)
    attached = hasattr(base, "landmark_ropes")
    if not attached:
        check_parts(model)
    rows = len(base.get_input_embeddings().weight)  # adapters around embeddings have no num_embeddings
    given = {"block_size": block_size, "landmark_id": landmark_id, "trained_tokens": trained_tokens}
    given = {name: value for name, value in given.items() if value is not None}
    settings = _settings(config, rows, given).changed(**reading)
    chunk_tokens(settings, config)  # ValueError for settings that leave no room for one
    if attached:
        model.set_attn_implementation(attention.NAME)
    else:
        _attach(model, kinds, add_row=settings.landmark_id == rows)
    serve_few_rows(model)
    serve_few_tokens(base)
    serve_steps(base)
    store_settings(model, settings)
    install_mixin(model)
    return model


def from_pretrained(path: str | PathLike[str], *, weights: str | None = None, **options: Any) -> PreTrainedModel:
    """Loads a converted model that was saved with `save_pretrained`, in float32 by default.

    `path` is a folder or a hub id; `options` go to `AutoModelForCausalLM.from_pretrained`. `dtype="auto"` is bfloat16
    where the device multiplies it fast (AVX512-BF16, AMX, GPUs that have it), and float32 elsewhere. With
    `weights="int8"` linear layers keep their weights in 8 bits, which decodes faster on a CPU; such a model can be
    neither saved nor trained. A GGUF file gives the ordinary model in it, dequantized and not converted yet. Code that
    comes with a model is not run unless `trust_remote_code=True`, and pickled weights are not read unless
    `use_safetensors=False`. Raises ValueError where `path` has no landmark settings, and where files are missing,
    damaged or do not belong together.
    """
    check_weights(weights)
    if is_gguf(path):
        if weights is not None:
            raise ValueError(f"weights={weights!r} is for converted models: give {path} to landmark.load_adapter")
        return gguf_model(path, **with_dtype(options))
    if "attn_implementation" in options:
        raise ValueError(f"the attention of a converted model is {attention.NAME!r}: leave attn_implementation out")
    config = options.get("config") or read_config(path, **hub_options(options))
    landmark_settings(config)
    options = {"vocab_size": saved_rows(text_config(config))} | with_dtype(options)
    if "config" in options:  # a config that is passed takes no changes by keyword
        options["config"] = deepcopy(config)
        text_config(options["config"]).vocab_size = options.pop("vocab_size")
    return with_weights(convert(read_weights(path, attn_implementation="eager", **options)), weights)


def save_plain(path: str | PathLike[str], out: str | PathLike[str]) -> None:
    """Saves the converted model in the folder `path`, with its tokenizer, to `out` as a model without landmarks.

    Its weights are the same but for the landmark's row, which goes. Raises ValueError if `out` exists, and where that
    row is not the last of the vocabulary, or has a token: then it is the model's own.
    """
    if Path(out).exists():
        raise ValueError(f"{out} exists: give a new folder")
    tokenizer = read_tokenizer(path)
    model = from_pretrained(path)
    landmark_id, ordinary = landmark_settings(model.config).landmark_id, ordinary_tokens(model)
    if landmark_id != ordinary or len(tokenizer) > landmark_id:
        raise ValueError(
            f"the landmark of {path} is row {landmark_id} of {ordinary}, a token of the model: leave it there"
        )
    config = read_config(path)
    delattr(config, "landmark")
    config.vocab_size = ordinary
    plain = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    state = model.state_dict()
    plain.load_state_dict({name: state[name][: len(weight)] for name, weight in plain.state_dict().items()})
    plain.generation_config = model.generation_config
    with written_whole(Path(out)) as partial:
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _settings(config: PretrainedConfig, rows: int, given: dict[str, int]) -> LandmarkSettings:
    """The settings of the model, or the defaults before conversion, with the ones `given` replaced."""
    if not is_converted(config):
        _check_row(given.get("landmark_id", 0), rows - 1)
        defaults = LandmarkSettings(DEFAULT_BLOCK_SIZE, landmark_id=rows, trained_tokens=0)
        return replace(defaults, **given)
    stored = landmark_settings(config)
    if given.get("landmark_id", stored.landmark_id) != stored.landmark_id:
        raise ValueError(
            f"landmark_id is {given['landmark_id']}, and this model's landmark is row {stored.landmark_id}: convert a"
            " model without landmarks to choose another"
        )
    _check_row(stored.landmark_id, rows)  # a model constructed from the config alone lacks the row
    learnt = given.get("block_size", stored.block_size) == stored.block_size and stored.landmark_id < rows
    if not learnt:  # other blocks, or a row that is new
        stored = replace(stored, trained_tokens=0)
    return replace(stored, **given)


def _check_row(landmark_id: Any, last: int) -> None:
    if not is_whole(landmark_id, 0, last):
        raise ValueError(f"landmark_id is {landmark_id!r}: the vocabulary has rows 0 to {last}")


def _attach(model: PreTrainedModel, kinds: list[str], *, add_row: bool) -> None:
    """Installs hooks and attention, checks that the model works with them, and removes them if it does not."""
    if add_row:
        check_rows_can_be_added(model)
    config, name = text_config(model.config), type(model).__name__
    base: Any = model.base_model
    if config._attn_implementation == attention.NAME:  # from the config of another converted model
        model.set_attn_implementation("eager")
    before: Any = config._attn_implementation
    untouched = hidden_states(base, use_cache=False)
    _check_finite(model, untouched)
    handles: list[Any] = []
    try:
        model.set_attn_implementation(attention.NAME)
        handles += [
            module.register_forward_pre_hook(attention_pre_hook, with_kwargs=True) for module in _attentions(base)
        ]
        base.landmark_ropes = find_ropes(base, name, len(kinds), getattr(config, "layer_types", None))
        handles.append(base.register_forward_pre_hook(base_pre_hook, with_kwargs=True))
        handles.append(base.register_forward_hook(base_hook, with_kwargs=True))
        check_attention(model, untouched, landmark_id=0)
    except BaseException as error:
        for handle in handles:
            handle.remove()
        if hasattr(base, "landmark_ropes"):
            del base.landmark_ropes
        model.set_attn_implementation(before)
        if isinstance(error, TypeError | attention.MissingCall):
            raise ValueError(f"{name} does not hand keyword arguments on to its attention, which needs them") from error
        raise
    if add_row:
        _add_mean_row(model)


def _check_finite(model: PreTrainedModel, hidden: Tensor) -> None:
    """Raises ValueError, naming a weight, where a model computes NaN or infinity: it cannot be compared with itself."""
    if hidden.isfinite().all():
        return
    damaged = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    reason = f"{damaged} has NaN or infinity" if damaged else f"it overflows {model.dtype}: load it in float32"
    raise ValueError(f"{type(model).__name__} computes numbers that are not finite: {reason}; load a sound copy of it")


def _attentions(base: nn.Module) -> list[nn.Module]:
    """The modules that call the attention function: the innermost ones with a layer index."""
    found = [module for module in base.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    # A decoder layer may have a layer index too; its attention module is inside it.
    return [m for m in found if not any(inner is not m and inner in found for inner in m.modules())]


def _add_mean_row(model: PreTrainedModel) -> None:
    """Adds a row to embeddings and head, the mean of all others."""
    rows: Any = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        for part in rows_of_tokens(model):
            part[rows] = part[:rows].mean(0)


# Self-check: a converted model must compute what it did before, and the same through a cache.

# Five tokens in blocks of two: two complete blocks and a tail. Reading them takes (2 + 1 + 0 + 1) * 3 + 3 positions.
_TOKENS, _BLOCK, _POSITIONS = 5, 2, 15
# Relative to the norm of the hidden states. Other kernels, and rotary applied elsewhere, round differently in every
# layer: in bfloat16 the 30 layers of SmolLM2-135M end 0.12 apart. Unrelated states are 1.4 apart.
_TOLERANCE = {torch.float16: 0.1, torch.bfloat16: 0.5}


def hidden_states(base: nn.Module, **options: Any) -> Tensor:
    """Hidden states of the base model for a few ordinary tokens, `[1, 5, C]`."""
    embeddings: Any = base.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(2, 2 + _TOKENS, device=embeddings.weight.device)[None] % len(embeddings.weight)
    with torch.no_grad(), evaluating(base):
        return base(input_ids=ids, **options)[0]


def check_attention(model: PreTrainedModel, untouched: Tensor, landmark_id: int) -> None:
    """Compares the hooked model with `untouched`, the hidden states before, and with reading through a cache.

    An input within one block has no gates, so hidden states must be those of the untouched model. An input of several
    blocks must give the same in one forward and chunk by chunk, with every block opened. Raises ValueError with the
    reason.
    """
    name, base = type(model).__name__, model.base_model
    config: Any = text_config(model.config)
    stored = getattr(config, "landmark", None)
    settings = {"block_size": _TOKENS + 1, "landmark_id": landmark_id, "retrieve": 2, "local_blocks": 0}
    try:
        config.landmark = settings
        if not _rotation_depends_on_length(model):
            found = hidden_states(base, use_cache=False)
            _compare(found, untouched, f"{name} gives other hidden states with landmark attention than with its own")
        config.landmark = settings | {"block_size": _BLOCK}
        if trained_positions(config) >= _POSITIONS:
            whole = hidden_states(base, use_cache=False)
            _compare(_read_in_chunks(model), whole, f"{name} reads something else through a cache than without one")
    finally:
        config.landmark = stored
        if stored is None:
            del config.landmark


def _rotation_depends_on_length(model: PreTrainedModel) -> bool:
    """Whether the model rotates short texts differently from long ones; landmark attention rotates as in long ones."""
    base: Any = model.base_model
    like, trained = torch.empty(0, device=base.device), trained_positions(model.config)
    for rope in set(base.landmark_ropes):
        short, long = (rotation(base.rotary_emb, rope, _TOKENS, pinned, like) for pinned in (_TOKENS, trained))
        if not torch.equal(short.cos, long.cos):
            return True
    return False


def _read_in_chunks(model: PreTrainedModel) -> Tensor:
    """Hidden states read through a cache in chunks of one block; ValueError for whatever the model raises."""
    base = model.base_model
    try:
        return hidden_states(base, **cache_kwargs(base, LandmarkCache(model.config, chunk_size=_BLOCK)))
    except Exception as error:
        name = type(model).__name__
        raise ValueError(f"{name} cannot be read through a cache ({type(error).__name__}: {error})") from error


def _compare(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not error <= _TOLERANCE.get(found.dtype, 1e-3):
        raise ValueError(f"{what} (relative difference {error:.2g}): this model is not supported")
