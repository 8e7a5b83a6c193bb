"""Configurations, weights and tokenizers as transformers loads them, and one line for what is wrong with their files.

A damaged file may run into any error, by the place of the damage and the release of transformers; weights that are
missing into none at all, for transformers makes them up. Here both are a ValueError that names the folder.
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

SHOWN = 3  # names of weights in a message
LONGEST = 300  # characters of somebody else's message


def read_config(path: str | PathLike[str], **options: Any) -> PretrainedConfig:
    """The configuration in a folder or on the hub; raises ValueError where none can be read."""
    with _told(f"no model can be loaded from {path}"):
        return AutoConfig.from_pretrained(path, **options)


def read_tokenizer(path: str | PathLike[str]) -> Any:
    """The tokenizer in a folder or on the hub; raises ValueError where none can be read."""
    with _told(f"the tokenizer at {path} cannot be loaded"):
        return AutoTokenizer.from_pretrained(path)


def read_weights(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model in a folder or on the hub, all of its weights read from there; `options` go to transformers.

    Raises ValueError where files are damaged or do not belong together, and where weights are missing.
    """
    # Weights that do not fit are told below; transformers would tell them in a table on the screen.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _told(f"the model at {path} cannot be loaded"), _silence():
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    model, found = loaded
    if mismatched := sorted(found["mismatched_keys"]):
        name, saved, wanted = mismatched[0]
        raise ValueError(
            f"the model at {path} cannot be loaded: its configuration makes {name} {list(wanted)}, the saved weights "
            f"are {list(saved)}: take configuration and weights of one model"
        )
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"the model at {path} cannot be loaded: its files lack the weights {', '.join(missing[:SHOWN])}{more}: "
            "take configuration and weights of one model, whole"
        )
    return model


def to_default_device(model: PreTrainedModel) -> PreTrainedModel:
    """Moves `model` to the current GPU if there is one, to the CPU otherwise."""
    return model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:LONGEST] or "no reason given"
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} ({kind}{said}): give a whole one, as save_pretrained writes it") from error


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


# GGUF files as a source of models: their weights become ordinary ones, which can be trained, converted and saved.


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
