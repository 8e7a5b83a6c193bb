"""What tells one model from another: all that decides what it computes, so that refused differences can be named."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from landmark.hf.compat import config_fields
from landmark.hf.config import Settings, text_config

# Hashes of weights: of every byte, made once and kept while the bytes stay what they are.


_ROW = 512  # words of 8 bytes
_PIECE_BYTES = 64 << 20  # weights on a GPU come over in pieces, so that they take little memory here

_kept = WeakTensorKeyDictionary()  # of each tensor: what it looked like when it was hashed, and its hash


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor, with its shape and number type, under the same names.

    Hashes are kept. Whether a tensor is still what was hashed is not taken from its version alone, which writing
    through `.data` or NumPy does not change: sums over all its bytes are compared, which takes a third of the time.

    Raises ValueError for tensors without data (on the meta device, or offloaded).
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} has no data here (meta device, or offloaded): load the model's weights first")
    different = {id(tensor): tensor for tensor in tensors.values()}  # tied weights have several names
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # hashing holds no lock of the interpreter
        found = dict(zip(different, threads.map(_hash, different.values()), strict=True))
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def _hash(tensor: Tensor) -> str:
    data = _bytes(tensor)
    look = (None if tensor.is_inference() else tensor._version, _sums(data))
    kept = _kept.get(tensor)
    if kept is None or kept[0] != look:
        kept = look, _sha256(data, f"{tensor.dtype} {list(tensor.shape)}")
        _kept[tensor] = kept
    return kept[1]


def _bytes(tensor: Tensor) -> Tensor:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return data.clone() if data.storage_offset() % 8 else data  # words of 8 bytes must be aligned


def _sums(data: Tensor) -> bytes:
    """Sums of all words, along and across: a changed byte changes two of them, and so do bytes that change places."""
    words = data[: len(data) // (8 * _ROW) * (8 * _ROW)].view(torch.int64).view(-1, _ROW)
    digest = hashlib.sha256()
    for part in (words.sum(0), words.sum(1), data[8 * words.numel() :]):
        digest.update(part.cpu().numpy().data)
    return digest.digest()


def _sha256(data: Tensor, what: str) -> str:
    digest = hashlib.sha256(what.encode())
    for piece in data.split(_PIECE_BYTES):
        digest.update(piece.cpu().numpy().data)
    return digest.hexdigest()


# Which of a model's adapters are in use, and how: what PEFT puts into a model, told without importing it.


NONE = "none"
# What stands between a module and the one that PEFT put in its place.
_WRAPPED = {"base_layer", "original_module", "token_adapter"}


class _Container(NamedTuple):
    """What one tuned module has of every adapter under one name: weights, or numbers such as the scaling."""

    module: Any
    content: Mapping[str, Any]  # by the adapter's name


class Adapters:
    """The adapters of `model` as they are now.

    Adapters that are not active compute nothing, and nor do those of a module that are disabled; merged ones are part
    of the weights. What an adapter is called does not matter.
    """

    def __init__(self, model: nn.Module) -> None:
        # A module around another tuned one comes first and names the same containers: the inner one knows best.
        self._containers = {path: _Container(m, content) for path, m, content in _containers(model)}

    def state(self) -> list[str]:
        """A line for all that is in use except weights, in a fixed order; none without active adapters."""
        lines = []
        for path, container in self._containers.items():
            if container.module.merged_adapters and container.module.disable_adapters:
                lines.append(f"{plain_name(path)}: merged, and disabled all the same")
            for place, adapter in enumerate(_in_use(container.module)):
                value = container.content.get(adapter)
                if _is_plain(value) and value is not False:
                    lines.append(f"{plain_name(path)} {place}: {value!r}")
        return sorted(lines)

    def mark(self) -> tuple[Any, ...]:
        """Changes when other adapters come into use, and when their scaling does."""
        modules = {path: container.module for path, container in self._containers.items()}
        return (*self.state(), *((path, *_in_use(module), *module.merged_adapters) for path, module in modules.items()))

    def split(self, weights: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """The model's own of `weights`, by the names that they have without adapters, and those of active adapters."""
        own, adapted = {}, {}
        for name, value in weights.items():
            path, adapter, rest = self._owner(name)
            if path is None:
                own[plain_name(name)] = value
            elif adapter in (used := _in_use(self._containers[path].module)):
                adapted[f"{plain_name(path)} {used.index(adapter)} {rest}"] = value
        return own, adapted

    def fingerprint(self, adapted: Mapping[str, str]) -> str:
        """What tells adapters in use from others, "none" without any; `adapted` are their weights, as of `split`."""
        lines = self.state() + [f"{name}: {value}" for name, value in sorted(adapted.items())]
        if not lines:
            return NONE
        count = max((len(_in_use(container.module)) for container in self._containers.values()), default=0)
        digest = hashlib.sha256("\n".join(lines).encode())
        return f"{count} active, {digest.hexdigest()}"

    def _owner(self, name: str) -> tuple[str | None, str, str]:
        """Container, adapter and the rest of the name of a weight; no container for the model's own."""
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            path = ".".join(parts[:cut])
            if path in self._containers:
                return path, parts[cut], ".".join(parts[cut + 1 :])
        return None, "", ""


def plain_name(name: str) -> str:
    """The name that a module or weight has in the model without adapters."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _containers(model: nn.Module) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    for path, module in model.named_modules():
        if not hasattr(type(module), "adapter_layer_names"):  # asking the class is quick
            continue
        tuned: Any = module
        for name in (*tuned.adapter_layer_names, *tuned.other_param_names):
            content: Any = tuned
            for part in name.split("."):
                content = getattr(content, part, None)
            if hasattr(content, "keys"):
                yield f"{path}.{name}", tuned, dict(content.items())


def _in_use(module: Any) -> list[str]:
    """The adapters that a tuned module adds to what it computes."""
    return [] if module.disable_adapters or module.merged_adapters else list(module.active_adapters)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)


# The fingerprint of contexts that were made before every byte of a model counted; kept so that they still open.


_SAMPLES = 1024  # numbers of each weight


def is_sampled(fingerprint: Mapping[str, Any]) -> bool:
    """Whether a fingerprint was made by this rule."""
    return "config" not in fingerprint


def sampled_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """A model's fingerprint by the old rule: of each weight at most 1,024 numbers, and three fields of the config."""
    config = text_config(model.config)
    settings = Settings.of(config)
    positions = {
        name: getattr(config, name, None) for name in ("rope_parameters", "max_position_embeddings", "sliding_window")
    }
    return {
        "model type": config.model_type,
        "number type": str(model.dtype).removeprefix("torch."),
        "positions": json.dumps(positions, sort_keys=True, default=str),
        "block_size": settings.block_size,
        "landmark_id": settings.landmark_id,
        "landmark positions": settings.positions,
        "weights": _weights(model),
    }


def _weights(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        numbers = weight.detach().flatten()
        sample = numbers[:: max(1, len(numbers) // _SAMPLES)].cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def model_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """All that decides which keys and values a converted model keeps of a text, JSON-able, each under its own name.

    Every byte of every weight counts, and so do the adapters in use, their scaling, and every field of the
    configuration that can change a key or a value. It is the same under all supported releases of transformers.

    Raises ValueError for a model whose weights are not there (meta device, or offloaded).
    """
    config = text_config(model.config)
    settings = Settings.of(config)
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    adapters = Adapters(model)
    own, adapted = adapters.split(hashes(tensors))
    lines = "\n".join(f"{name}: {value}" for name, value in sorted(own.items()))
    return {
        "model type": config.model_type,
        "number type": str(model.dtype).removeprefix("torch."),
        "block_size": settings.block_size,
        "landmark_id": settings.landmark_id,
        "landmark positions": settings.positions,
        "adapters": adapters.fingerprint(adapted),
        "weights": hashlib.sha256(lines.encode()).hexdigest(),
        "config": config_fields(config),
    }


def fingerprint_by_the_rule_of(kept: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The fingerprint of `model` made as `kept` was, to be compared with it."""
    return sampled_fingerprint(model) if is_sampled(kept) else model_fingerprint(model)


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What two fingerprints do not have in common: names, and both values; fields of configurations one by one."""
    for name in (*kept, *(name for name in now if name not in kept)):
        before, after = kept.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after)
        elif before != after:
            yield name, before, after


def model_mark(model: PreTrainedModel) -> tuple[Any, ...]:
    """Changes when weights or adapters do, as far as PyTorch counts that; takes a moment, whatever the model's size.

    What it says unchanged may differ (weights written through `.data`); the fingerprint never misses that.
    """
    versions = [(p.data_ptr(), None if p.is_inference() else p._version) for p in model.parameters()]
    return (*versions, *Adapters(model).mark())
