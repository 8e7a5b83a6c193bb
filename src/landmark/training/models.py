"""The model, tokenizer and teacher that a plan names, loaded or built from scratch."""

from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_bitsandbytes_available

from landmark.data.tokenizer import train_tokenizer
from landmark.hf import convert, loading
from landmark.hf.config import is_converted, landmark_settings, layer_kinds
from landmark.hf.loading import gguf_model, is_gguf
from landmark.hf.model import ordinary_tokens
from landmark.readers.memorizing import add_memory_gates, load_with_gates
from landmark.readers.recurrent import Recurrent
from landmark.settings import DEFAULT_BLOCK_SIZE
from landmark.training.plan import Plan


def block_size_of(plan: Plan) -> int:
    """Block size of the model that `plan` trains, known before the model is loaded."""
    if plan.block_size is not None:
        return plan.block_size
    config = read_config(plan)
    return landmark_settings(config).block_size if is_converted(config) else DEFAULT_BLOCK_SIZE


def tokenizer_of(plan: Plan) -> PreTrainedTokenizerFast:
    """The tokenizer of a plan: the one it names (trained first if it does not exist yet), or the model's own.

    Raises ValueError if there is none, or if it is not backed by the tokenizers library.
    """
    name = plan.tokenizer or plan.model
    if name is None:
        raise ValueError("--config needs --tokenizer; `landmark tokenizer train` makes one")
    if plan.vocabulary is not None and not (Path(name) / "tokenizer.json").exists():
        train_tokenizer(plan.texts, plan.vocabulary, name)
    try:
        tokenizer = loading.read_tokenizer(name)
    except ValueError as error:
        raise ValueError(f"no tokenizer can be loaded from {name}: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer of {name} has no tokenizer.json; convert it first")
    return tokenizer


def load_model(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The converted model that training starts from, in float32 or 4 bits, with memory gates if a stage needs them.

    Raises ValueError if it cannot be loaded, if the tokenizer has ids beyond the model's vocabulary, or if the model
    has landmarks and another block size.
    """
    model = _existing(plan) if plan.config is None else _from_scratch(plan, tokenizer)
    check_vocabulary(tokenizer, model)
    asked: dict[str, Any] = {"block_size": plan.block_size, "retrieve": plan.retrieve}
    model = convert(model, **{name: value for name, value in asked.items() if value is not None})
    if any(stage.attention == "knn" for stage in plan.recipe.stages):
        add_memory_gates(model)
    return model


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    """Raises ValueError if the tokenizer has ids that are no ordinary tokens of the model."""
    ordinary = ordinary_tokens(model)
    largest = max(tokenizer.get_vocab().values())
    if largest >= ordinary:
        raise ValueError(
            f"the tokenizer does not belong to the model: its ids reach {largest}, the model has {ordinary} "
            "ordinary tokens; name the model's own tokenizer or train another"
        )


def read_config(plan: Plan) -> PretrainedConfig:
    """The transformers configuration that training starts from; raises ValueError if it is missing or invalid."""
    if plan.config is not None:
        try:
            return AutoConfig.for_model(**plan.config)
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"the configuration cannot be used: {error}") from error
    return loading.read_config(str(plan.model))


def _from_scratch(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = read_config(plan)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _existing(plan: Plan) -> PreTrainedModel:
    name = str(plan.model)
    if is_gguf(name):
        return gguf_model(name, dtype="float32")
    config = read_config(plan)
    options: dict[str, Any] = {"dtype": "float32"}
    if plan.load_in is not None:
        keep_4bit_weights()
        options["quantization_config"] = nf4_config(compute_dtype(plan.precision))
    if not is_converted(config):
        return loading.read_weights(name, **options)
    block_size = landmark_settings(config).block_size
    if plan.block_size not in (None, block_size):
        raise ValueError(
            f"{name} was trained with blocks of {block_size} tokens, not {plan.block_size}; leave --block-size out"
        )
    return load_with_gates(name, **options)


def check_packages(plan: Plan) -> None:
    """Raises ValueError if a package that `plan` needs is not installed, or does not support this machine."""
    if plan.adapter is not None and find_spec("peft") is None:
        raise ValueError("--adapter needs the peft library: pip install 'landmark-attention[lora]'")
    if plan.load_in is not None:
        check_4bit()


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of forward passes; "auto" is bfloat16, else float16, on GPUs that have it, and float32 on CPUs."""
    if precision != "auto":
        return getattr(torch, precision)
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


# Teachers for self-distillation: the model before conversion, with full attention over the whole window.


class Teacher(ABC):
    """The source of the next-token logits that a student is trained towards."""

    @abstractmethod
    def logits(self, student: nn.Module, input_ids: Tensor) -> Tensor:
        """Logits `[B, T, V]` of windows `[B, T]` of ordinary tokens, without gradient."""


class FrozenCopy(Teacher):
    """A second copy of the model, never converted; for students that train all parameters."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def logits(self, student: nn.Module, input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            nn.Module.to(self.model, input_ids.device)
            return self.model(input_ids=input_ids, use_cache=False).logits


class AdaptersOff(Teacher):
    """The student itself with its adapters disabled and without landmarks: no second copy of the parameters."""

    def logits(self, student: nn.Module, input_ids: Tensor) -> Tensor:
        whole_window = Recurrent(input_ids.shape[1], 0)  # no recurrence: full attention
        was_training = student.training
        student.eval()  # no dropout, no gradient checkpointing
        try:
            with torch.no_grad(), student.disable_adapter():  # type: ignore[operator]
                return student(input_ids=input_ids, use_cache=False, landmark_reader=whole_window).logits
        finally:
            student.train(was_training)


def load_teacher(plan: Plan, model: PreTrainedModel) -> Teacher | None:
    """The teacher of a training by self-distillation; None for other trainings.

    Raises ValueError if the model had landmarks before the training.
    """
    if not plan.distill:
        return None
    if is_converted(read_config(plan)):
        raise ValueError(f"--distill compares with the model before conversion, and {plan.model} has landmarks already")
    if plan.adapter is not None and "sliding" not in layer_kinds(model.config):
        return AdaptersOff()
    return FrozenCopy(_existing(plan))


# Weights in 4 bits, through bitsandbytes.


def check_4bit() -> None:
    """Raises ValueError unless bitsandbytes is installed and supports 4-bit weights on this machine."""
    if not is_bitsandbytes_available():
        raise ValueError("--load-in 4bit needs a recent bitsandbytes: pip install 'landmark-attention[quantized]'")
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        packed, state = functional.quantize_4bit(torch.ones(64, device=device))
        functional.dequantize_4bit(packed, state)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"--load-in 4bit: the installed bitsandbytes does not support this machine's {device} ({error}); "
            "leave --load-in out, or train on another machine"
        ) from error


def nf4_config(compute: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's 4-bit NormalFloat with double quantization (Dettmers et al. 2023); matrix products in `compute`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_4bit_weights() -> None:
    """Makes models that are loaded from now on keep their 4-bit weights unchanged in evaluation.

    On CPUs with bfloat16 products, bitsandbytes would repack them for evaluation with coarser scales, and training
    would continue with the changed weights. It has no setting for that.
    """
    from bitsandbytes.nn import modules

    name = "has_avx512bf16"  # queried when a layer is built
    if hasattr(modules, name):
        setattr(modules, name, lambda: False)
