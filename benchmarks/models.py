"""The models that read: converted, and their twin as it was before, on the same weights."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.machine import Machine
from benchmarks.options import ModelOptions
from benchmarks.roofline import Sizes
from landmark.hf import convert, from_pretrained
from landmark.hf.config import (
    MAX_CHUNK,
    head_dim,
    key_value_heads,
    landmark_settings,
    layer_kinds,
    text_config,
)
from landmark.hf.model import saved_rows
from landmark.hf.tokenizer import quiet_transformers
from landmark.settings import LandmarkSettings, position_budget

VOCABULARY = 4096
_PLAIN = "landmark-bench"

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]


@dataclass(frozen=True)
class Subject:
    """A converted model and its twin `plain`, which shares its weights and lets the caller attend."""

    model: PreTrainedModel
    plain: PreTrainedModel
    settings: LandmarkSettings
    sizes: Sizes


def subject(options: ModelOptions, machine: Machine, layers: int) -> Subject:
    """The model that the options name, or one of random weights with `layers` layers unless they say otherwise.

    Raises ValueError for a model whose past cannot be filled, or cannot be read by plain causal attention.
    """
    model = _loaded(options) if options.model is not None else _random(options, options.layers or layers)
    model = model.to(machine.device, machine.dtype).eval()  # pyright: ignore[reportArgumentType]
    config = text_config(model.config)
    settings = landmark_settings(config)
    if "sliding" in layer_kinds(config) or settings.reading.positions == "true":
        raise ValueError(
            f"{options.model} has sliding layers or true positions, and a past filled with random keys has neither:"
            " time a model without"
        )
    head: Any = model.get_output_embeddings()
    base: Any = model.base_model
    sizes = Sizes(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=key_value_heads(config),
        head_dim=head_dim(config),
        layer_weights=sum(weight.numel() for weight in base.layers.parameters()),
        head_weights=head.weight.numel(),
        number_bytes=machine.size,
    )
    return Subject(model, _twin(model), settings, sizes)


def _loaded(options: ModelOptions) -> PreTrainedModel:
    assert options.model is not None
    if not options.model.is_dir():
        raise ValueError(f"no model at {options.model}: give the folder that save_pretrained wrote")
    quiet_transformers()
    model = from_pretrained(options.model)
    given = {name: getattr(options, name) for name in ("retrieve", "local_blocks")}
    changed = {name: value for name, value in given.items() if value is not None}
    return convert(model, **changed) if changed else model


def _random(options: ModelOptions, layers: int) -> PreTrainedModel:
    heads, width, block_size = options.heads or 8, options.width or 512, options.block_size or 50
    retrieve, local_blocks = options.retrieve or 4, options.local_blocks or 0
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=options.intermediate or 4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=options.kv_heads or heads,
        # Room for the longest chunk that is ever read at once.
        max_position_embeddings=position_budget(block_size, retrieve, local_blocks, tail=True) + MAX_CHUNK,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    convert(model, block_size=block_size, landmark_id=VOCABULARY - 1, retrieve=retrieve, local_blocks=local_blocks)
    text_config(model.config).landmark["trained_tokens"] = None  # nobody asks what it says
    return model


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it was before conversion, on the same tensors of weights."""
    config: Any = deepcopy(model.config)
    text: Any = text_config(config)
    text.vocab_size = saved_rows(text)
    del text.landmark
    config._attn_implementation = _PLAIN
    twin = type(model)(config).to(model.device, model.dtype)  # pyright: ignore[reportArgumentType]
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


def _plain_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    bench_attend: Attend,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Lets the caller of the forward attend: `bench_attend` takes and gives [B,H,T,D]."""
    if softcap is not None or s_aux is not None:
        raise ValueError("the model caps scores or has sinks, which plain causal attention does not: time another")
    return bench_attend(query, key, value, scaling).transpose(1, 2), None


# No mask function goes by this name, so that transformers builds no mask either.
AttentionInterface.register(_PLAIN, _plain_forward)
