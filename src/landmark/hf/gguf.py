"""GGUF files as a source of models: their weights become ordinary ones, which can be trained, converted and saved."""

from collections.abc import Callable
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

Read = TypeVar("Read")


def is_gguf(source: str | PathLike[str]) -> bool:
    """Whether `source` names a GGUF file, by the end of its name."""
    return str(source).lower().endswith(".gguf")


def gguf_config(file: str | PathLike[str]) -> PretrainedConfig:
    """The configuration of the model in `file`; raises ValueError where it cannot be read."""
    return _ordinary(_read(AutoConfig.from_pretrained, file))


def gguf_tokenizer(file: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer in `file`; raises ValueError where it cannot be read."""
    tokenizer = _read(AutoTokenizer.from_pretrained, file)
    config = gguf_config(file)
    for name in ("bos", "eos", "pad", "unk"):  # which some releases of transformers take from elsewhere
        token_id = getattr(config, f"{name}_token_id", None)
        if token_id is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token_id))
    return tokenizer


def gguf_model(file: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model in `file` with its weights dequantized; `options` go to transformers.

    Raises ValueError where `file` cannot be read: no such file, a part of one, a family that transformers does not
    know, or the package gguf is missing.
    """
    if hasattr(transformers, "GgufConfig"):  # these releases would keep weights packed where they have kernels for it
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = _read(AutoModelForCausalLM.from_pretrained, file, **options)
    _ordinary(model.config)
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False  # type: ignore[assignment]
    return model


def _read(load: Callable[..., Read], file: str | PathLike[str], **options: Any) -> Read:
    path = Path(file)
    if find_spec("gguf") is None:
        raise ValueError(f"reading {path} needs the package gguf: pip install 'landmark-attention[gguf]'")
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    try:
        return load(str(path.parent), gguf_file=path.name, **options)
    # What a damaged or unknown file runs into differs with the place of the damage and the release of transformers.
    except Exception as error:
        detail = str(error).strip().splitlines()
        raise ValueError(
            f"{path} cannot be read as a GGUF model ({type(error).__name__}: {detail[0] if detail else ''}): "
            "download it again, or take a family that transformers reads from GGUF"
        ) from error


def _ordinary(config: PretrainedConfig) -> PretrainedConfig:
    """`config` without the traces of quantization, which would forbid to save the model."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    return config
