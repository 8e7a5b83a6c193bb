"""Making a Hugging Face decoder read with landmarks."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from landmark.hf import attention
from landmark.hf.gguf import gguf_model, is_gguf
from landmark.hf.hooks import MaskLandmarkLogit, before_base, behind_base, unrotate
from landmark.hf.loading import read_weights
from landmark.hf.model import adopt
from landmark.hf.rope import find_ropes
from landmark.hf.settings import DEFAULT_LOCAL_BLOCKS, Positions, Settings, chunk_positions, layer_kinds, text_config
from landmark.memory import Selection


def convert(
    model: PreTrainedModel,
    *,
    block_size: int = 63,
    landmark_id: int | None = None,
    top_k: int = 4,
    selection: Selection = "per_token_and_head",
    local_blocks: int = DEFAULT_LOCAL_BLOCKS,
    positions: Positions = "stingy",
) -> PreTrainedModel:
    """Makes `model`, any rotary decoder, read with landmarks; returns the same object.

    Afterwards a forward without a cache is the grouped softmax of Mohtashami & Jaggi (2023), section 3.1, over the
    whole input, and a forward with a `LandmarkCache` (made by itself in `generate()`) reads through memory, section
    3.2. Callers pass and get ordinary tokens only.

    Args:
        block_size: ordinary tokens per block; a landmark follows each block.
        landmark_id: vocabulary row that serves as the landmark and is never generated; a new row, the mean of all
            others, when None. A converted model keeps its row.
        top_k: blocks opened per query; 0 reads with local attention only.
        selection: "per_token_and_head", "per_token" or "per_head": who chooses its own blocks. "per_head" looks
            ahead within a chunk: its queries share what any of them asked for, so that predictions before the end of
            a chunk depend on later tokens of it; a perplexity read so is not one of predictions.
        local_blocks: newest complete blocks that stay in sight like the tail; 0 is the paper's rule.
        positions: "stingy" places opened blocks within the trained range, "true" where they stood.

    Converting twice only changes the settings. Raises ValueError, naming the reason, for models that cannot work
    (no rotary positions, latent attention, dropped keyword arguments) and settings that leave no room for a chunk.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"convert takes a transformers model, not {type(model).__name__}")
    config, name = text_config(model.config), type(model).__name__
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise ValueError(f"{name} is not a decoder with a language-model head: landmarks need a causal language model")
    base: Any = model.base_model
    kinds = layer_kinds(config)
    stored = getattr(config, "landmark", None)
    if landmark_id is None and stored is not None:
        landmark_id = stored["landmark_id"]
    rows = len(base.get_input_embeddings().weight)  # adapters around embeddings have no num_embeddings
    if landmark_id is not None and not 0 <= landmark_id < rows:
        raise ValueError(f"landmark_id is {landmark_id}: the vocabulary has rows 0 to {rows - 1}")
    new_row = rows if landmark_id is None else landmark_id
    settings = Settings(block_size, new_row, top_k, selection, local_blocks, positions)
    chunk_positions(settings, config)
    if not hasattr(base, "landmark_ropes"):
        _attach(model, base, name, kinds, add_row=landmark_id is None)
    adopt(model)
    _mask_logit(model, settings.landmark_id)
    config.landmark = settings.to_dict()
    return model


def _attach(model: PreTrainedModel, base: Any, name: str, kinds: list[str], add_row: bool) -> None:
    """Proves that the model works before anything of it is changed for good."""
    config = text_config(model.config)
    before: Any = config._attn_implementation
    try:
        model.set_attn_implementation(attention.NAME)
        handles = [module.register_forward_pre_hook(unrotate, with_kwargs=True) for module in _attentions(base)]
        try:
            ropes = find_ropes(base, name, len(kinds), getattr(config, "layer_types", None))
        except BaseException:
            for handle in handles:
                handle.remove()
            raise
    except TypeError as error:
        model.set_attn_implementation(before)
        raise ValueError(f"{name} does not pass keyword arguments on to its attention: {error}") from error
    except ValueError:
        model.set_attn_implementation(before)
        raise
    if add_row:
        _add_mean_row(model)
    base.landmark_ropes = ropes
    base.register_forward_pre_hook(before_base, with_kwargs=True)
    base.register_forward_hook(behind_base, with_kwargs=True)


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


def _mask_logit(model: PreTrainedModel, landmark_id: int) -> None:
    """One mask on the output embeddings, however often the model is converted or its head replaced."""
    head: Any = model.get_output_embeddings()
    for key, hook in list(head._forward_hooks.items()):
        if isinstance(hook, MaskLandmarkLogit):
            del head._forward_hooks[key]
    head.register_forward_hook(MaskLandmarkLogit(landmark_id))


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
    options.setdefault("dtype", torch.float32)
    model = read_weights(path, attn_implementation="eager", **options)
    return convert(model, **Settings.of(text_config(model.config)).to_dict())
