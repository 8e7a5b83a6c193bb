"""Loading configs, weights and tokenizers, from folders, the hub and GGUF files, with errors of one line.

A damaged file can raise any exception in transformers, and missing weights none at all, for they are initialized at
random. Here both are a ValueError that names the folder.

A model is data (docs/security.md): code that comes with one is not run, and pickled weights, which are programs, are
not read. `trust_remote_code=True` and `use_safetensors=False` allow them to who loads a model from Python.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
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

from landmark.data.hub import check_model
from landmark.hf.compat import holds_all_tensors, obey_progress_bar_setting
from landmark.hf.config import text_config

_SHOWN = 3  # names of weights in a message
_LONGEST = 300  # characters quoted of an error
_NO_CODE = {"trust_remote_code": False}  # left out, transformers would ask on the terminal
_LOCAL_ATTENTION = (None, "eager", "sdpa", "flex_attention", "landmark")  # transformers downloads others as kernels
_ADAPTER = "adapter_config.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = ".safetensors.index.json"
# Weights that are missing or do not fit raise in `_whole`; transformers would print a table, and make them at random.
_REPORT: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


# Options of transformers that locate a config, on the hub or in a local copy of it.
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


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` of a model that apply to its config too."""
    return {name: options[name] for name in _HUB if name in options}


def read_config(path: str | PathLike[str], **options: Any) -> PretrainedConfig:
    """The config in a folder, on the hub or in a GGUF file; raises ValueError where none can be read."""
    if is_gguf(path):
        return gguf_config(path)
    check_model(str(path), "config.json", options)
    _check_no_adapter(Path(path, options.get("subfolder") or ""))
    with _one_line_error(f"no model can be loaded from {path}"):
        config = AutoConfig.from_pretrained(path, **_NO_CODE | options)
    named = text_config(config)._attn_implementation
    if named not in _LOCAL_ATTENTION:
        raise ValueError(
            f"the configuration at {path} names {named!r} as its attention, which may be code to download: remove"
            " attn_implementation from config.json"
        )
    return config


def read_tokenizer(path: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, on the hub or in a GGUF file; raises ValueError where none can be read."""
    if is_gguf(path):
        return gguf_tokenizer(path)
    check_model(str(path), "tokenizer_config.json", {})
    with _one_line_error(f"the tokenizer at {path} cannot be loaded"):
        return AutoTokenizer.from_pretrained(path, **_NO_CODE)


def read_weights(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model in a folder or on the hub with all of its weights; `options` go to transformers.

    Raises ValueError where files are damaged or do not belong together, where weights are missing or pickled, and for
    an adapter, which names another model to load.
    """
    options = _NO_CODE | {"use_safetensors": True} | options
    if options["use_safetensors"]:
        _check_safetensors(Path(path, options.get("subfolder") or ""))
    with _one_line_error(f"the model at {path} cannot be loaded"), _silence():
        loaded = AutoModelForCausalLM.from_pretrained(path, **options | _REPORT)
    return _whole(path, loaded)


def _whole(path: str | PathLike[str], loaded: Any) -> PreTrainedModel:
    """The model that transformers loaded with `_REPORT`; raises ValueError where it is not all in the files."""
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


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype of that name, float32 for None; "auto" is bfloat16 where it is multiplied fast, else float32.

    That is on GPUs that have it, and on processors with AVX512-BF16 or AMX; the device is that of `to_default_device`.
    Raises ValueError for what is no dtype.
    """
    if dtype != "auto":
        named = torch.float32 if dtype is None else getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(named, torch.dtype):
            raise ValueError(f'dtype is {dtype!r}: give "auto", or the name of a dtype of torch, such as "bfloat16"')
        return named
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = can.get("avx512_bf16", False) or can.get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def with_dtype(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of a model with its dtype, as `dtype_of` has it; float32 by default."""
    return {**options, "dtype": dtype_of(options.get("dtype", torch.float32))}


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """`model` with its parameters in `dtype`, in place, as if it had been loaded so.

    Buffers stay what they are: `model.to(dtype)` would round the frequencies of rotary positions.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
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
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{what}: it needs code of its own, which is never run by itself; take a model of a family that"
                " transformers has, or read that code and pass trust_remote_code=True to landmark.from_pretrained"
            ) from error
        reason = " ".join(str(error).split())[:_LONGEST] or "no reason given"
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} ({kind}{reason}): give a whole one, as save_pretrained writes it") from error


def _check_safetensors(folder: Path) -> None:
    """Raises ValueError for a folder of pickled weights, or of an adapter; others, and names on the hub, pass."""
    _check_no_adapter(folder)
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir())
    shards = [shard for name in names if name.endswith(_INDEX) for shard in _shards(folder / name)]
    whole = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in (*shards, *(() if whole else names)) if name.endswith(_PICKLED)]
    if pickled:
        raise ValueError(
            f"the weights at {folder} are pickled ({pickled[0]}), and a pickle can run any program: take the model's"
            " safetensors files, or, if you trust it, load it with use_safetensors=False in Python and save it again"
        )


def _check_no_adapter(folder: Path) -> None:
    """Raises ValueError for a folder that holds an adapter, with which transformers would load another model."""
    if (folder / _ADAPTER).exists():
        raise ValueError(
            f"{folder} holds an adapter ({_ADAPTER}), which names another model to load: give that and the adapter"
            " to landmark.load_adapter, or save the merged model in a folder of its own"
        )


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names; none if it is damaged, which transformers finds."""
    try:
        return [str(name) for name in json.loads(index.read_bytes())["weight_map"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


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
    path = _whole_gguf(file)
    return deepcopy(_gguf_config(path, _version(path)))


@lru_cache(maxsize=4)
def _gguf_config(path: Path, version: tuple[int, int]) -> PretrainedConfig:  # takes seconds
    return _without_quantization(_read(AutoConfig.from_pretrained, path))


def gguf_tokenizer(file: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file; raises ValueError where it cannot be read."""
    config = gguf_config(file)
    tokenizer = _read(AutoTokenizer.from_pretrained, Path(file))
    for name in ("bos", "eos", "pad", "unk"):  # some releases of transformers guess these
        token_id = getattr(config, f"{name}_token_id", None)
        if token_id is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token_id))
    return tokenizer


def gguf_model(file: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model in a GGUF file with its weights dequantized; `options` go to transformers.

    Raises ValueError where `file` cannot be read: missing, truncated, of a family that transformers does not know,
    without all weights, or without the package gguf.
    """
    path = _whole_gguf(file)
    if hasattr(transformers, "GgufConfig"):  # these releases would keep weights quantized where they have kernels
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    options = {"config": gguf_config(path)} | options
    obey_progress_bar_setting()
    with _silence():
        model = _whole(path, _read(AutoModelForCausalLM.from_pretrained, path, **options | _REPORT))
    _without_quantization(model.config)
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False  # type: ignore[assignment]
    model.name_or_path = str(file)  # transformers names the folder, in which there is no tokenizer
    return model


def _whole_gguf(file: str | PathLike[str]) -> Path:
    """The path of a GGUF file that holds all that its header names; raises ValueError for any other file."""
    path = Path(file)
    if find_spec("gguf") is None:
        raise ValueError(f"reading {path} needs the package gguf: pip install 'landmark-attention[gguf]'")
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    with path.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it does not begin with the letters GGUF; download it again")
    _check_end(path)
    return path


def _check_end(path: Path) -> None:
    """Raises ValueError for a GGUF file that is damaged or ends early.

    transformers reads the configs of some families without a look at the weights, which a training needs much later.
    """
    if holds_all_tensors(path):
        return
    from gguf import GGUFReader

    try:
        GGUFReader(path)  # takes seconds: it parses every word of the vocabulary
    except Exception as error:  # a damaged file can raise any
        raise ValueError(f"{path} is damaged or not whole ({_reason(error)}): download it again") from error


def _version(path: Path) -> tuple[int, int]:
    """Changes when a file is replaced."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _read(load: Callable[..., _Loaded], path: Path, **options: Any) -> _Loaded:
    try:
        return load(str(path.parent), gguf_file=path.name, **_NO_CODE | options)
    except Exception as error:  # an unknown family can raise any
        raise ValueError(
            f"{path} cannot be read as a GGUF model ({_reason(error)}): take a family that transformers reads from GGUF"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"


def _without_quantization(config: PretrainedConfig) -> PretrainedConfig:
    """`config` without its quantization fields, with which the model could not be saved."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    return config
