"""Making a Hugging Face decoder read with landmarks."""

from copy import deepcopy
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from landmark.hf import attention
from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_kwargs
from landmark.hf.config import (
    chunk_tokens,
    landmark_settings,
    layer_kinds,
    text_config,
    trained_positions,
)
from landmark.hf.hooks import attention_pre_hook, base_hook, base_pre_hook
from landmark.hf.loading import gguf_model, is_gguf, read_config, read_weights
from landmark.hf.model import install_mixin, saved_rows, store_settings
from landmark.hf.refusals import check_model, check_parts, check_rows_can_be_added
from landmark.hf.rope import evaluating, find_ropes, rotation
from landmark.settings import DEFAULT_BLOCK_SIZE, LandmarkSettings, ReadingChanges

# The proof, at conversion, that a model computes the same with landmark attention, and the same through a cache.


# Five tokens in blocks of two: two whole blocks and a tail. What a query reads takes (2 + 1 + 0 + 1) * 3 + 3 positions.
_TOKENS, _BLOCK, _POSITIONS = 5, 2, 15
# Of the norm of the hidden states. Other kernels, and rotary in another place, round otherwise in every layer: in
# bfloat16 the 30 layers of SmolLM2-135M end 0.12 apart. States that have nothing in common are 1.4 apart.
_TOLERANCE = {torch.float16: 0.1, torch.bfloat16: 0.5}


def hidden_states(base: nn.Module, **options: Any) -> Tensor:
    """What the base model makes of a few ordinary tokens, `[1, 5, C]`."""
    embeddings: Any = base.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(2, 2 + _TOKENS, device=embeddings.weight.device)[None] % len(embeddings.weight)
    with torch.no_grad(), evaluating(base):
        return base(input_ids=ids, **options)[0]


def check_attention(model: PreTrainedModel, untouched: Tensor, landmark_id: int) -> None:
    """Compares the model, its hooks in place, with itself before (`untouched`, by `hidden_states`) and with its cache.

    An input within one block has no gates, so it must give what the untouched model gives. An input of several blocks
    must give the same in one forward and chunk by chunk, with every block opened. Raises ValueError with the reason.
    """
    name, base = type(model).__name__, model.base_model
    config: Any = text_config(model.config)
    stored = getattr(config, "landmark", None)
    settings = {"block_size": _TOKENS + 1, "landmark_id": landmark_id, "retrieve": 2, "local_blocks": 0}
    try:
        config.landmark = settings
        if not _changes_with_length(base, trained_positions(config)):
            found = hidden_states(base, use_cache=False)
            _compare(found, untouched, f"{name} gives other hidden states with landmark attention than with its own")
        config.landmark = settings | {"block_size": _BLOCK}
        if trained_positions(config) >= _POSITIONS:
            whole = hidden_states(base, use_cache=False)
            read = _read(name, base, config)
            _compare(read, whole, f"{name} reads something else through a cache than without one")
    finally:
        config.landmark = stored
        if stored is None:
            del config.landmark


def _changes_with_length(base: Any, trained: int) -> bool:
    """Whether the model itself rotates short texts otherwise than long ones; landmark attention always as long ones."""
    like = torch.empty(0, device=base.device)
    for rope in set(base.landmark_ropes):
        short, long = (rotation(base.rotary_emb, rope, _TOKENS, pinned, like) for pinned in (_TOKENS, trained))
        if not torch.equal(short.cos, long.cos):
            return True
    return False


def _read(name: str, base: Any, config: Any) -> Tensor:
    """Hidden states of chunks of one block; ValueError for a model that breaks off in it, however it does."""
    try:
        return hidden_states(base, **cache_kwargs(base, LandmarkCache(config, chunk_size=_BLOCK)))
    except Exception as error:
        raise ValueError(f"{name} cannot be read through a cache ({type(error).__name__}: {error})") from error


def _compare(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not error <= _TOLERANCE.get(found.dtype, 1e-3):
        raise ValueError(f"{what} (relative difference {error:.2g}): this model is not supported")


# What says where on the hub, or in which cache, a configuration lies.
_HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def convert(
    model: PreTrainedModel,
    *,
    block_size: int | None = None,
    landmark_id: int | None = None,
    trained_tokens: int | None = None,
    **reading: Unpack[ReadingChanges],
) -> PreTrainedModel:
    """Makes `model`, any rotary decoder, read with landmarks; returns the same object.

    Afterwards a forward without a cache is the grouped softmax of Mohtashami & Jaggi (2023), section 3.1, over the
    whole input, and a forward with a `LandmarkCache` (made by itself in `generate()`) reads through memory, section
    3.2. Callers pass and get ordinary tokens only: the landmark's row comes last, and neither `config.vocab_size` nor
    logits have it.

    Args:
        block_size: ordinary tokens per block, 63 by default; a landmark follows each block.
        landmark_id: vocabulary row that serves as the landmark and is never generated; a new row, the mean of all
            others, by default. A row that is not the last keeps its logit, 100 nats below all others together.
        trained_tokens: ordinary tokens that the model was trained on with landmarks, 0 by default; `landmark train`
            counts them itself. Reading through memory with a model of 0 is warned of once.
        reading: how the model reads unless a cache says otherwise, the fields of `ReadingSettings`. `selection`
            "per_head" looks ahead within a chunk: its queries share what any of them asked for, so that predictions
            before the end of a chunk depend on later tokens of it; a perplexity read so is not one of predictions.

    Converting twice changes the settings named and nothing else, and takes an attention implementation back that was
    set in between. Raises ValueError, naming the reason, for models that cannot work (no rotary positions, latent
    attention, dropped keyword arguments) and settings that leave no room for a chunk.
    """
    check_model(model)
    config, name = text_config(model.config), type(model).__name__
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
        _attach(model, base, name, kinds, add_row=settings.landmark_id == rows)
    store_settings(model, settings)
    install_mixin(model)
    return model


def _settings(config: PretrainedConfig, rows: int, given: dict[str, int]) -> LandmarkSettings:
    """What is `given` over what the model has, or over the defaults where it has nothing yet."""
    if getattr(config, "landmark", None) is None:
        _check_row(given.get("landmark_id", 0), rows - 1)
        defaults = LandmarkSettings(DEFAULT_BLOCK_SIZE, landmark_id=rows, trained_tokens=0)
        return replace(defaults, **given)
    stored = landmark_settings(config)
    if given.get("landmark_id", stored.landmark_id) != stored.landmark_id:
        raise ValueError(
            f"landmark_id is {given['landmark_id']}, and this model's landmark is row {stored.landmark_id}: convert a"
            " model without landmarks to choose another"
        )
    _check_row(stored.landmark_id, rows)  # a model that was built from the configuration alone lacks the row
    if stored.landmark_id == rows:
        stored = replace(stored, trained_tokens=0)
    return replace(stored, **given)


def _check_row(landmark_id: Any, last: int) -> None:
    if not isinstance(landmark_id, int) or isinstance(landmark_id, bool) or not 0 <= landmark_id <= last:
        raise ValueError(f"landmark_id is {landmark_id!r}: the vocabulary has rows 0 to {last}")


def _attach(model: PreTrainedModel, base: Any, name: str, kinds: list[str], add_row: bool) -> None:
    """Proves that the model works before anything of it is changed for good."""
    if add_row:
        check_rows_can_be_added(model)
    config = text_config(model.config)
    if config._attn_implementation == attention.NAME:  # from the configuration of another converted model
        model.set_attn_implementation("eager")
    before: Any = config._attn_implementation
    untouched = hidden_states(base, use_cache=False)
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


def _attentions(base: nn.Module) -> list[nn.Module]:
    """The modules that call the attention function: those a forward reaches with a layer number."""
    found = [module for module in base.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    # A decoder layer may carry a layer number too; its attention is the one without attention inside.
    return [m for m in found if not any(inner is not m and inner in found for inner in m.modules())]


def _add_mean_row(model: PreTrainedModel) -> None:
    rows: Any = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
        for embeddings in parts:
            embeddings.weight[rows] = embeddings.weight[:rows].mean(0)
            if getattr(embeddings, "bias", None) is not None:
                embeddings.bias[rows] = embeddings.bias[:rows].mean()


def from_pretrained(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """Loads a model that was converted and saved with `save_pretrained`, landmarks in place.

    A GGUF file gives the ordinary model in it, dequantized and not converted yet. `options` go to
    `AutoModelForCausalLM.from_pretrained`. Raises ValueError when `path` holds no landmark settings, or a GGUF file
    cannot be read.
    """
    if is_gguf(path):
        return gguf_model(path, **{"dtype": torch.float32} | options)
    if not Path(path).exists() and Path(path).is_absolute():
        raise ValueError(f"no model at {path}: give the directory that save_pretrained wrote, or a hub name")
    if "attn_implementation" in options:
        raise ValueError(f"the attention of a converted model is {attention.NAME!r}: leave attn_implementation out")
    config = options.get("config") or read_config(path, **{n: options[n] for n in _HUB if n in options})
    landmark_settings(config)
    options = {"dtype": torch.float32, "vocab_size": saved_rows(text_config(config))} | options
    if "config" in options:  # which takes no changes by name
        options["config"] = deepcopy(config)
        text_config(options["config"]).vocab_size = options.pop("vocab_size")
    return convert(read_weights(path, attn_implementation="eager", **options))
