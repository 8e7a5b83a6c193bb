"""The model and tokenizer that a training starts from."""

from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_bitsandbytes_available

from landmark.data.hub import check_reachable
from landmark.data.tokenizer import train_tokenizer
from landmark.hf import convert, loading
from landmark.hf.config import layer_kinds, text_config
from landmark.hf.loading import gguf_model, is_gguf
from landmark.hf.model import ordinary_tokens
from landmark.readers.memorizing import add_memory_gates, load_with_gates
from landmark.readers.recurrent import Recurrent
from landmark.settings import DEFAULT_BLOCK_SIZE
from landmark.training.plan import Plan

# Weights in 4 bits through bitsandbytes: whether it can work here, and what it is asked for.


def check_four_bits() -> None:
    """Raise ValueError unless bitsandbytes is installed and can keep weights in 4 bits on this machine."""
    if not is_bitsandbytes_available():
        raise ValueError("--load-in 4bit needs a recent bitsandbytes: pip install 'landmark-attention[quantized]'")
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        packed, state = functional.quantize_4bit(torch.ones(64, device=device))
        functional.dequantize_4bit(packed, state)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"--load-in 4bit: the bitsandbytes that is installed cannot work on this machine's {device} ({error}); "
            "leave --load-in out, or train where it can"
        ) from error


def four_bits(compute: torch.dtype) -> BitsAndBytesConfig:
    """The 4-bit normal floats of QLoRA (Dettmers et al. 2023), their scales quantized too; products in `compute`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_numbers() -> None:
    """Lets models that are loaded from now on keep their weights of 4 bits as they are while they are evaluated.

    On CPUs that multiply in bfloat16, bitsandbytes would pack them anew for that, with scales of fewer bits, and a
    training would go on with other numbers than before. There is no setting for it.
    """
    from bitsandbytes.nn import modules

    name = "has_avx512bf16"  # which a layer asks when it is made
    if hasattr(modules, name):
        setattr(modules, name, lambda: False)


# Teachers of a conversion: the same model before it got landmarks, with its own full attention over a whole window.


class Teacher(ABC):
    """Gives the next-token logits that a student is to have."""

    @abstractmethod
    def logits(self, student: Any, input_ids: Tensor) -> Tensor:
        """Logits `[B, T, V]` of windows `[B, T]` of ordinary tokens, without gradient."""


class FrozenCopy(Teacher):
    """A second copy of the model, never converted; for students whose every weight is trained."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)

    def logits(self, student: Any, input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.to(input_ids.device)(input_ids=input_ids, use_cache=False).logits


class AdaptersOff(Teacher):
    """The student itself without its adapters, reading without landmarks: no second copy of the weights."""

    def logits(self, student: Any, input_ids: Tensor) -> Tensor:
        whole_window = Recurrent(input_ids.shape[1], 0)  # nothing carried: full attention
        was_training = student.training
        student.eval()  # no dropout, no recomputation
        try:
            with torch.no_grad(), student.disable_adapter():
                return student(input_ids=input_ids, use_cache=False, landmark_reader=whole_window).logits
        finally:
            student.train(was_training)


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


def tokenizer_of(plan: Plan) -> PreTrainedTokenizerFast:
    """The tokenizer that `plan` names, trained if it has to be, or the model's own.

    Raises ValueError if there is no tokenizer, or if it is not backed by the tokenizers library.
    """
    name = plan.tokenizer or plan.model
    if name is None:
        raise ValueError("--config needs --tokenizer; `landmark tokenizer train` makes one")
    if plan.vocabulary is not None and not (Path(name) / "tokenizer.json").exists():
        train_tokenizer(plan.texts, plan.vocabulary, name)
    try:
        if not is_gguf(name):
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
    asked = {"block_size": plan.block_size, "retrieve": plan.retrieve}
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
    ordinary = ordinary_tokens(model)
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
