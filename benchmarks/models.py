"""The models that are timed: a converted model and the model before conversion, on the same weights."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.machine import Machine, shortage
from benchmarks.options import ModelOptions, TextOptions
from benchmarks.roofline import Sizes
from landmark.assets import book_path, model_path
from landmark.data.text import read_text
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
from landmark.hf.tokenizer import encode, load_tokenizer, quiet_transformers
from landmark.settings import LandmarkSettings, ReadingChanges, ReadingSettings, position_budget

VOCABULARY = 4096  # tokens of the random model
_PLAIN = "landmark-bench"

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
OptionsT = TypeVar("OptionsT", bound=ModelOptions)


@dataclass(frozen=True)
class ModelPair:
    """A converted model, and `plain`, the model before conversion: same weights, attention given by the caller."""

    model: PreTrainedModel
    plain: PreTrainedModel
    settings: LandmarkSettings
    sizes: Sizes


@dataclass(frozen=True)
class Case(Generic[OptionsT]):
    """One comparison of `read` or `decode`: tokens `ids [B,T]` after `context` ordinary tokens in each row."""

    machine: Machine
    pair: ModelPair
    options: OptionsT
    context: int
    ids: Tensor

    def row(self, bench: str, **figures: object) -> dict[str, Any]:
        """What all rows of this case have in common; `figures` are those of the benchmark."""
        settings = self.pair.settings
        what = {"bench": bench, "model": str(self.options.model or "random"), "context": self.context, **figures}
        reading = {name: getattr(settings.reading, name) for name in ("retrieve", "local_blocks", "selection")}
        return what | {"block_size": settings.block_size} | reading | self.pair.sizes._asdict()

    def shortage(self, needed: int) -> str | None:
        """Why `needed` bytes cannot be had; None if they can."""
        return shortage(needed, self.machine.device)


def random_ids(pair: ModelPair, machine: Machine, rows: int, tokens: int) -> Tensor:
    """Random ordinary tokens `[rows, tokens]`, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(pair.settings.landmark_id, (rows, tokens), generator=generator).to(machine.device)


def model_pair(options: ModelOptions, machine: Machine, layers: int) -> ModelPair:
    """The model of the options, by default one with random weights and `layers` layers.

    Raises ValueError for a model whose KV cache cannot be filled, or whose attention is not plain causal attention.
    """
    model = _loaded(options) if options.model is not None else _random(options, machine, options.layers or layers)
    model = model.to(machine.device, machine.dtype).eval()  # pyright: ignore[reportArgumentType]
    config = text_config(model.config)
    settings = landmark_settings(config)
    if "sliding" in layer_kinds(config) or settings.reading.positions == "true":
        raise ValueError(
            f"{options.model} has sliding layers or true positions, which a cache of random keys has not: time a model"
            " without"
        )
    head: Any = model.get_output_embeddings()
    base: Any = model.base_model
    sizes = Sizes(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=key_value_heads(config),
        head_dim=head_dim(config),
        layer_parameters=sum(weight.numel() for weight in base.layers.parameters()),
        head_parameters=head.weight.numel(),
        number_bytes=machine.size,
    )
    return ModelPair(model, _twin(model), settings, sizes)


def model_and_text(options: TextOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Tensor]:
    """The model and tokenizer of the options, on the CPU, and the tokens `[N]` of the text."""
    text = read_text(options.text or book_path())
    model, tokenizer = model_and_tokenizer(options.model)
    return model, tokenizer, encode(tokenizer, text).ids


def model_and_tokenizer(folder: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A converted model from a folder, that of the package if None, on the CPU."""
    quiet_transformers()
    model = from_pretrained(folder or model_path())
    return model, load_tokenizer(folder or model_path(), model)


def _loaded(options: ModelOptions) -> PreTrainedModel:
    assert options.model is not None
    if not options.model.is_dir():
        raise ValueError(f"no model at {options.model}: give the folder that save_pretrained wrote")
    quiet_transformers()
    model = from_pretrained(options.model)
    given = {name: getattr(options, name) for name in ("retrieve", "local_blocks", "selection")}
    changed = {name: value for name, value in given.items() if value is not None}
    return convert(model, **changed) if changed else model


def _random(options: ModelOptions, machine: Machine, layers: int) -> PreTrainedModel:
    heads, width, block_size = options.heads or 8, options.width or 512, options.block_size or 50
    retrieve, local_blocks = options.retrieve or 4, options.local_blocks or 0
    reading: ReadingChanges = {"retrieve": retrieve, "local_blocks": local_blocks}
    if options.selection is not None:
        reading["selection"] = options.selection
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=options.intermediate or 4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=options.kv_heads or heads,
        # Room for the longest chunk that is ever read at once.
        max_position_embeddings=position_budget(block_size, ReadingSettings(**reading), tail=True) + MAX_CHUNK,
    )
    with torch.random.fork_rng(devices=[]), machine.device:  # drawn where they will lie: large models take a while
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    convert(model, block_size=block_size, landmark_id=VOCABULARY - 1, **reading)
    text_config(model.config).landmark["trained_tokens"] = None  # unknown: it was never trained
    return model


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The model before conversion, on the same tensors of weights."""
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
    """Attention function of the unconverted model: `bench_attend`, a keyword of the forward, maps [B,H,T,D]."""
    if softcap is not None or s_aux is not None:
        raise ValueError("the model caps scores or has sinks, which plain causal attention does not: time another")
    return bench_attend(query, key, value, scaling).transpose(1, 2), None


# No mask function goes by this name, so that transformers builds no mask either.
AttentionInterface.register(_PLAIN, _plain_forward)
