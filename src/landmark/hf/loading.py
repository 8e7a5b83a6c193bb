"""Loading configs, weights and tokenizers, from folders, the hub and GGUF files, with errors of one line.

A damaged file can raise any exception in transformers, and missing weights none at all, for they are initialized at
random. Here both are a ValueError that names the folder.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

_SHOWN = 3  # names of weights in a message
_LONGEST = 300  # characters quoted of an error


def read_config(path: str | PathLike[str], **options: Any) -> PretrainedConfig:
    """The config in a folder, on the hub or in a GGUF file; raises ValueError where none can be read."""
    if is_gguf(path):
        return gguf_config(path)
    with _one_line_error(f"no model can be loaded from {path}"):
        return AutoConfig.from_pretrained(path, **options)


def read_tokenizer(path: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, on the hub or in a GGUF file; raises ValueError where none can be read."""
    if is_gguf(path):
        return gguf_tokenizer(path)
    with _one_line_error(f"the tokenizer at {path} cannot be loaded"):
        return AutoTokenizer.from_pretrained(path)


def read_weights(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model in a folder or on the hub with all of its weights; `options` go to transformers.

    Raises ValueError where files are damaged or do not belong together, and where weights are missing.
    """
    # Weights that do not fit raise below; transformers would print a table.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _one_line_error(f"the model at {path} cannot be loaded"), _silence():
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    model, found = loaded
    if mismatched := sorted(found["mismatched_keys"]):
        name, saved, wanted = mismatched[0]
        raise ValueError(
            f"the model at {path} cannot be loaded: its configuration makes {name} {list(wanted)}, the saved weights "
            f"are {list(saved)}: take configuration and weights of one model"
        )
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"the model at {path} cannot be loaded: its files lack the weights {', '.join(missing[:_SHOWN])}{more}: "
            "take configuration and weights of one model, whole"
        )
    return model


def to_default_device(model: PreTrainedModel) -> PreTrainedModel:
    """Moves `model` to the current GPU if there is one, to the CPU otherwise."""
    return model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]


@contextmanager
def _one_line_error(what: str) -> Iterator[None]:
    """Turns any exception into a ValueError of one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST] or "no reason given"
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} ({kind}{reason}): give a whole one, as save_pretrained writes it") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps transformers from logging anything but errors."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


# GGUF files: weights are dequantized, so that the model can be trained, converted and saved.

_Loaded = TypeVar("_Loaded")


def is_gguf(source: str | PathLike[str]) -> bool:
    """Whether `source` ends in .gguf."""
    return str(source).lower().endswith(".gguf")


def gguf_config(file: str | PathLike[str]) -> PretrainedConfig:
    """The config of the model in a GGUF file; raises ValueError where it cannot be read."""
    return _without_quantization(_read(AutoConfig.from_pretrained, file))


def gguf_tokenizer(file: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file; raises ValueError where it cannot be read."""
    tokenizer = _read(AutoTokenizer.from_pretrained, file)
    config = gguf_config(file)
    for name in ("bos", "eos", "pad", "unk"):  # some releases of transformers guess these
        token_id = getattr(config, f"{name}_token_id", None)
        if token_id is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token_id))
    return tokenizer


def gguf_model(file: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model in a GGUF file with its weights dequantized; `options` go to transformers.

    Raises ValueError where `file` cannot be read: missing, truncated, of a family that transformers does not know, or
    without the package gguf.
    """
    if hasattr(transformers, "GgufConfig"):  # these releases would keep weights quantized where they have kernels
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = _read(AutoModelForCausalLM.from_pretrained, file, **options)
    _without_quantization(model.config)
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False  # type: ignore[assignment]
    return model


def _read(load: Callable[..., _Loaded], file: str | PathLike[str], **options: Any) -> _Loaded:
    path = Path(file)
    if find_spec("gguf") is None:
        raise ValueError(f"reading {path} needs the package gguf: pip install 'landmark-attention[gguf]'")
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    try:
        return load(str(path.parent), gguf_file=path.name, **options)
    # A damaged or unknown file can raise anything.
    except Exception as error:
        detail = str(error).strip().splitlines()
        raise ValueError(
            f"{path} cannot be read as a GGUF model ({type(error).__name__}: {detail[0] if detail else ''}): "
            "download it again, or take a family that transformers reads from GGUF"
        ) from error


def _without_quantization(config: PretrainedConfig) -> PretrainedConfig:
    """`config` without its quantization fields, with which the model could not be saved."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    return config
