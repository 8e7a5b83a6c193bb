"""The model and tokenizer that a training starts from."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from landmark.data.hub import check_reachable
from landmark.data.tokenizer import train_tokenizer
from landmark.hf import convert, loading
from landmark.hf.gguf import gguf_config, gguf_model, gguf_tokenizer, is_gguf
from landmark.hf.settings import DEFAULT_BLOCK_SIZE, layer_kinds, text_config
from landmark.readers.knn import add_memory_gates, load_with_gates
from landmark.training.plan import Plan
from landmark.training.quantized import check_four_bits, four_bits, keep_numbers
from landmark.training.teachers import AdaptersOff, FrozenCopy, Teacher


def check_packages(plan: Plan) -> None:
    """Raise ValueError if a package that `plan` needs is not installed, or cannot work on this machine."""
    if plan.adapter is not None and find_spec("peft") is None:
        raise ValueError("--adapter needs the peft library: pip install 'landmark-attention[lora]'")
    if plan.load_in is not None:
        check_four_bits()


def arithmetic(precision: str) -> torch.dtype:
    """The number format of forward passes; "auto" is the best that this machine has."""
    if precision != "auto":
        return getattr(torch, precision)
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def block_size_of(plan: Plan) -> int:
    """Ordinary tokens in a block of the model that `plan` trains, before there is one."""
    if plan.block_size is not None:
        return plan.block_size
    settings = getattr(text_config(read_config(plan)), "landmark", None)
    return settings["block_size"] if settings else DEFAULT_BLOCK_SIZE


def load_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """The tokenizer that `plan` names, trained if it has to be, or the model's own.

    Raises ValueError if there is no tokenizer, or if it is not backed by the tokenizers library.
    """
    name = plan.tokenizer or plan.model
    if name is None:
        raise ValueError("--config needs --tokenizer; `landmark tokenizer train` makes one")
    if plan.vocabulary is not None and not (Path(name) / "tokenizer.json").exists():
        train_tokenizer(plan.texts, plan.vocabulary, name)
    try:
        if is_gguf(name):
            tokenizer = gguf_tokenizer(name)
        else:
            check_reachable(name, "model")
            tokenizer = loading.read_tokenizer(name)
    except ValueError as error:
        raise ValueError(f"no tokenizer can be loaded from {name}: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer of {name} has no tokenizer.json; convert it first")
    return tokenizer


def load_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The converted model that training starts from, in float32 or in 4 bits, with memory gates where a stage needs
    them.

    Raises ValueError if it cannot be loaded, if the tokenizer has ids beyond the model's vocabulary, or if a
    model with landmarks has other blocks.
    """
    model = _existing(plan) if plan.config is None else _from_scratch(plan, tokenizer)
    check_vocabulary(tokenizer, model)
    settings: dict[str, Any] = dict(getattr(model.config, "landmark", None) or {})
    asked = {"block_size": plan.block_size, "top_k": plan.top_k}
    settings |= {name: value for name, value in asked.items() if value is not None}
    model = convert(model, **settings)
    if any(stage.attention == "knn" for stage in plan.recipe.stages):
        add_memory_gates(model)
    return model


def load_teacher(plan: Plan, model: PreTrainedModel) -> Teacher | None:
    """The teacher of a training that distils into the converted `model`; None for any other.

    Raises ValueError for a model that had landmarks before the training.
    """
    if not plan.distill:
        return None
    if getattr(read_config(plan), "landmark", None) is not None:
        raise ValueError(f"--distill compares with the model before conversion, and {plan.model} has landmarks already")
    if plan.adapter is not None and "sliding" not in layer_kinds(model.config):
        return AdaptersOff()
    return FrozenCopy(_existing(plan))


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    """Raise ValueError if the tokenizer can produce ids that are no ordinary tokens of the model."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.num_embeddings
    landmark = (getattr(model.config, "landmark", None) or {}).get("landmark_id")
    # The row that conversion adds stands behind the tokenizer's; a row chosen inside the vocabulary does not.
    ordinary = rows - 1 if landmark == rows - 1 else rows
    largest = max(tokenizer.get_vocab().values())
    if largest >= ordinary:
        raise ValueError(
            f"the tokenizer does not belong to the model: its ids reach {largest}, the model has {ordinary} "
            "ordinary tokens; name the model's own tokenizer or train another"
        )


def read_config(plan: Plan) -> PretrainedConfig:
    """The transformers configuration that training starts from; raises ValueError if there is none that works."""
    if plan.config is not None:
        try:
            return AutoConfig.for_model(**plan.config)
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"the configuration cannot be used: {error}") from error
    if is_gguf(str(plan.model)):
        return gguf_config(str(plan.model))
    return loading.read_config(str(plan.model))


def _from_scratch(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = read_config(plan)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    return AutoModelForCausalLM.from_config(config)


def _existing(plan: Plan) -> PreTrainedModel:
    name, block_size = str(plan.model), plan.block_size
    if is_gguf(name):
        return gguf_model(name, dtype="float32")
    landmark = getattr(read_config(plan), "landmark", None)
    options: dict[str, Any] = {"dtype": "float32"}
    if plan.load_in is not None:
        keep_numbers()
        options["quantization_config"] = four_bits(arithmetic(plan.precision))
    if landmark is None:
        return loading.read_weights(name, **options)
    if block_size not in (None, landmark["block_size"]):
        raise ValueError(
            f"{name} was trained with blocks of {landmark['block_size']} tokens, not {block_size}; "
            "leave --block-size out"
        )
    return load_with_gates(name, **options)
