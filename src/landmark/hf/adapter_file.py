"""Adapters of converted models, each as one file.

An adapter holds low-rank matrices and the landmark's row. Its file is that of peft (adapter_model.safetensors) with an
entry in the header for the settings and the model that it belongs to. It is read without peft.
"""

import base64
import json
import math
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from landmark.hf.compat import config_fields
from landmark.hf.config import chunk_tokens, is_converted, landmark_settings, text_config
from landmark.hf.convert import convert
from landmark.hf.int8 import check_weights, with_weights
from landmark.hf.loading import cast, gguf_model, hub_options, is_gguf, read_config, read_weights, with_dtype
from landmark.settings import LandmarkSettings

ENTRY = "landmark"
FILE = "adapter_model.safetensors"  # in a folder
_PREFIX = "base_model.model."
_LORA_A, _LORA_B, _ROW = ".lora_A.weight", ".lora_B.weight", ".token_adapter.trainable_tokens_delta"
_SAMPLES = 64  # numbers of each adapted matrix that identify its model
_ROUNDING = 2.0**-7  # of bfloat16, the coarsest dtype that models are loaded in
_CORRELATION = 0.99  # with the weights an adapter was trained on; another quantization of them has 0.995 or more


def describe(
    base: PreTrainedModel, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], scale: float
) -> dict[str, str]:
    """The header entry for an adapter, `tensors` by peft's names, of the unconverted `base`.

    `settings` are the landmark settings, `scale` is alpha / rank.
    """
    sampled = _sampled(base, _adapted(tensors))
    entry = {
        "settings": dict(settings),
        "scale": scale,
        "config": config_fields(text_config(base.config)),
        "sample": base64.b64encode(np.concatenate(list(sampled.values())).astype("<f4").tobytes()).decode(),
    }
    return {ENTRY: json.dumps(entry)}


class Adapter(NamedTuple):
    """A sound adapter: what its tensors and its header say, checked."""

    path: Path
    matrices: dict[str, tuple[Tensor, Tensor]]  # by module: [rank, in] and [out, rank]
    row: Tensor  # [C], of the landmark
    settings: LandmarkSettings
    scale: float
    config: dict[str, Any]  # of the model that it belongs to
    sample: np.ndarray  # of its weights


def load_adapter(
    base: str | PathLike[str] | PreTrainedModel,
    adapter: str | PathLike[str],
    *,
    weights: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Converts `base`, the model that an adapter was trained on, and merges the adapter into its weights.

    `base` is a GGUF file, a folder, a hub id, or a model, which is modified; `adapter` is a file, or a folder with
    adapter_model.safetensors. `options` go to `AutoModelForCausalLM.from_pretrained` where it loads the model, in
    float32 by default; another `dtype`, "auto" as in `from_pretrained`, is what weights are rounded to after the merge.
    The converted model needs no peft and can be saved. With `weights="int8"` linear layers keep their weights in 8 bits
    afterwards, which decodes faster on a CPU; such a model can be neither saved nor trained.

    Warns where the weights are close to those the adapter was trained on but not equal (another quantization).
    Raises ValueError for a file that is no such adapter, and for another model: other shapes, other weights, or one
    that is converted already. All but the weights is checked before they are read.
    """
    check_weights(weights)
    found = read_adapter(_file(adapter))
    if given := sorted(options.keys() & found.settings.to_dict().keys()):
        value = found.settings.to_dict()[given[0]]
        raise ValueError(f"{given[0]} is {value} in {found.path}, which was trained with it: leave {given[0]} out")
    is_model = isinstance(base, PreTrainedModel)
    dtype = None if is_model else with_dtype(options)["dtype"]
    _check_config(found, base.config if is_model else read_config(base, **hub_options(options)))
    model = base if is_model else _load(base, options)
    _check_weights(found, model)
    settings = found.settings.to_dict()
    if settings["landmark_id"] == model.get_input_embeddings().num_embeddings:  # type: ignore[union-attr]
        del settings["landmark_id"]  # the row that conversion adds
    model = convert(model, **settings)
    with torch.no_grad():
        for name, pair in found.matrices.items():
            weight: Any = model.get_submodule(name).weight
            down, up = (matrix.to(weight.device, torch.float32) for matrix in pair)
            weight.copy_(weight.float() + found.scale * (up @ down))
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight[found.settings.landmark_id] = found.row.to(embeddings.weight)
    return with_weights(model if dtype is None else cast(model, dtype), weights)


def adapted_config(base: str | PathLike[str], adapter: str | PathLike[str]) -> PretrainedConfig:
    """The config of `load_adapter(base, adapter)`, before any weight is read.

    Raises ValueError as `load_adapter` does, for what the config of the base decides.
    """
    found, config = read_adapter(_file(adapter)), read_config(base)
    _check_config(found, config)
    text_config(config).landmark = found.settings.to_dict()
    return config


def _file(adapter: str | PathLike[str]) -> Path:
    """The file of an adapter that is a file or a folder."""
    path = Path(adapter)
    return path / FILE if path.is_dir() else path


def _load(base: str | PathLike[str], options: dict[str, Any]) -> PreTrainedModel:
    options = options | {"dtype": torch.float32}
    return gguf_model(base, **options) if is_gguf(base) else read_weights(base, **options)


def read_adapter(path: Path) -> Adapter:
    """The adapter in a file; raises ValueError for a file that is damaged, or that `describe` has not described."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(ENTRY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except Exception as error:  # a damaged file can raise any
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as an adapter ({reason}): give a whole safetensors file") from error
    if header is None:
        raise ValueError(f"{path} has no entry for the model it belongs to: give an adapter that landmark wrote")
    try:
        return _checked(path, tensors, json.loads(header))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is a damaged adapter ({reason}): give one as landmark wrote it") from error


def _checked(path: Path, tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Adapter:
    """Raises ValueError, or what Python raises for values of another type, for a header that says nothing sound."""
    matrices, row = _checked_tensors(tensors)
    scale, config = entry["scale"], entry["config"]
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise ValueError(f"its scale is {scale!r}")
    if not isinstance(config, dict):
        raise ValueError(f"its config is {config!r}")
    sample = np.frombuffer(base64.b64decode(entry["sample"], validate=True), "<f4")
    if not np.isfinite(sample).all():
        raise ValueError("its sample of weights has NaN or infinity")
    return Adapter(path, matrices, row, LandmarkSettings.from_dict(entry["settings"]), float(scale), config, sample)


def _checked_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """The matrices by module, and the landmark's row; KeyError or ValueError where they are not those of an adapter."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim != 2 or not tensor.isfinite().all():
            raise ValueError(f"{name} is no matrix of finite numbers")
    rest = dict(tensors)
    matrices = {
        name: (rest.pop(_PREFIX + name + _LORA_A), rest.pop(_PREFIX + name + _LORA_B)) for name in _adapted(rest)
    }
    for name, (down, up) in matrices.items():
        if len(down) != up.shape[1]:
            raise ValueError(f"the matrices of {name} have ranks {len(down)} and {up.shape[1]}")
    if not matrices or len(rest) != 1 or not (name := next(iter(rest))).endswith(_ROW) or len(rest[name]) != 1:
        raise ValueError(f"besides matrices of modules it has {', '.join(sorted(rest)) or 'nothing'}, not one landmark")
    return matrices, rest[name][0]


def _adapted(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the adapted modules, sorted."""
    return sorted(name.removeprefix(_PREFIX).removesuffix(_LORA_A) for name in tensors if name.endswith(_LORA_A))


def _sampled(model: PreTrainedModel, names: list[str]) -> dict[str, np.ndarray]:
    """Evenly spaced samples of the weights of modules, float32."""
    found = {}
    for name in names:
        weight: Any = model.get_submodule(name).weight
        numbers = weight.detach().flatten()
        found[name] = numbers[:: max(1, len(numbers) // _SAMPLES)][:_SAMPLES].float().cpu().numpy()
    return found


def _check_config(adapter: Adapter, config: PretrainedConfig) -> None:
    """Raises ValueError where the config is not that of the model that an adapter was trained on."""
    if is_converted(config):
        blocks = f"blocks of {landmark_settings(config).block_size} tokens"
        raise ValueError(
            f"{adapter.path} is for a model before conversion, and this one has landmarks already, after {blocks}"
        )
    config = text_config(config)
    ours = config_fields(config)
    for name, wanted in adapter.config.items():
        if name in ours and not _same(ours[name], wanted):
            raise ValueError(
                f"{adapter.path} is for another model: its {name} is {wanted}, that of the model {ours[name]}; give the"
                " adapter that was trained on it"
            )
    chunk_tokens(adapter.settings, config)  # ValueError for settings that leave no room for one


def _check_weights(adapter: Adapter, model: PreTrainedModel) -> None:
    """Raises ValueError, or warns, where the weights are not those that an adapter was trained on."""
    path, modules = adapter.path, dict(model.named_modules())
    for name, (down, up) in adapter.matrices.items():
        shape = len(up), down.shape[1]
        here = tuple(getattr(getattr(modules.get(name), "weight", None), "shape", ()))
        if here != shape:
            raise ValueError(f"{path} is for another model: {name} is {shape} there, {here or 'missing'} in the model")
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[union-attr]
    if adapter.row.shape != (width,):
        raise ValueError(f"{path} is for another model: its embeddings have {len(adapter.row)} numbers, not {width}")
    expected, given = adapter.sample, np.concatenate(list(_sampled(model, sorted(adapter.matrices)).values()))
    if expected.shape != given.shape:
        raise ValueError(f"{path} is a damaged adapter (its sample of weights does not fit its matrices)")
    if np.allclose(given, expected, rtol=_ROUNDING, atol=1e-6):
        return
    norms = float(np.linalg.norm(given) * np.linalg.norm(expected)) or 1.0
    correlation = float(given @ expected) / norms
    if not correlation >= _CORRELATION:  # NaN too
        raise ValueError(
            f"{path} is for other weights: those of the model have a correlation of {correlation:.3f} with them"
        )
    warnings.warn(
        f"the weights differ slightly from those that {path.name} was trained on (correlation {correlation:.4f}):"
        " another quantization, or a close relative; the adapter may fit a little less",
        stacklevel=3,
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two config values are equal up to the rounding of files that store numbers in 32 bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
