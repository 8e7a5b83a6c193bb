"""Fingerprints of models: everything that decides which keys and values a model computes, by name.

Two models with equal fingerprints can share a saved context; a difference can be named in an error.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PretrainedConfig, PreTrainedModel

from landmark.hf.adapters_in_use import Adapters
from landmark.hf.compat import config_fields
from landmark.hf.config import landmark_settings, text_config
from landmark.hf.int8 import Int8Linear, in_8_bits

_IN_8_BITS = ", weights in 8 bits"  # of a number type
_DTYPES = ("float64", "float32", "bfloat16", "float16")


def model_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Everything that decides which keys and values a converted model computes for a text, JSON-serializable, by name.

    Includes every byte of every weight, the adapters in use, their scaling, and every config field that can change a
    key or a value. It is the same under all supported releases of transformers.

    Raises ValueError for a model whose weights have no data (meta device, or offloaded).
    """
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    adapters = Adapters(model)
    own, adapted = adapters.split(hashes(tensors))
    lines = "\n".join(f"{name}: {value}" for name, value in sorted(own.items()))
    return config_fingerprint(model.config) | {
        "number type": _number_type(model),
        "adapters": adapters.fingerprint(adapted),
        "weights": hashlib.sha256(lines.encode()).hexdigest(),
    }


def plain_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """The same of a model before conversion."""
    config = text_config(model.config)
    found = {"model type": config.model_type, "config": config_fields(config), "number type": _number_type(model)}
    return found | {"weights": hashes(model.state_dict())}


def config_fingerprint(config: PretrainedConfig) -> dict[str, Any]:
    """The part of a fingerprint that the config of a converted model decides, known before weights are read."""
    config = text_config(config)
    return _landmark_fields(config) | {"config": config_fields(config)}


def config_fingerprint_like(saved: Mapping[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """The same, sampled if `saved` is, for comparison with it."""
    return _sampled_fields(text_config(config)) if is_sampled(saved) else config_fingerprint(config)


def _landmark_fields(config: PretrainedConfig) -> dict[str, Any]:
    settings = landmark_settings(config)
    return {
        "model type": config.model_type,
        "block_size": settings.block_size,
        "landmark_id": settings.landmark_id,
        "landmark positions": settings.reading.positions,
    }


def _number_type(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.") + (_IN_8_BITS if in_8_bits(model) else "")


def numbers_of(fingerprint: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The `dtype` and the `weights` of `landmark.from_pretrained` with which a model of this fingerprint was loaded.

    None is float32, for a number type that there is not, and for weights as they are.
    """
    kind = str(fingerprint.get("number type"))
    dtype = kind.removesuffix(_IN_8_BITS)
    return dtype if dtype in _DTYPES else None, "int8" if kind.endswith(_IN_8_BITS) else None


def fingerprint_like(saved: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The fingerprint of `model`, sampled if `saved` is, for comparison with it."""
    return sampled_fingerprint(model) if is_sampled(saved) else model_fingerprint(model)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Entries in which two fingerprints differ: name and both values, config fields one by one."""
    for name in (*saved, *(name for name in now if name not in saved)):
        before, after = saved.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after)
        elif before != after:
            yield name, before, after


def model_mark(model: PreTrainedModel) -> tuple[Any, ...]:
    """A version of weights and adapters: changes when PyTorch counts a write to them; fast for models of any size.

    Weights written through `.data` do not change it; they do change the fingerprint.
    """
    rounded = (buffer for module in model.modules() if isinstance(module, Int8Linear) for buffer in module.buffers())
    weights = (*model.parameters(), *rounded)
    versions = [(x.data_ptr(), None if x.is_inference() else x._version) for x in weights]
    return (*versions, *Adapters(model).mark())


# Hashes of weights: every byte counts; a hash is kept until its tensor changes.

_ROW = 512  # words of 8 bytes
_PIECE_BYTES = 64 << 20  # weights on a GPU are copied in pieces, to use little host memory

_cached = WeakTensorKeyDictionary()  # tensor -> (its version and sums when it was hashed, its hash)


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes, shape and dtype of each tensor, under the same names.

    Hashes are cached. A tensor's version does not change when it is written through `.data` or NumPy, so sums over all
    its bytes are compared as well, which takes a third of the time of hashing.

    Raises ValueError for tensors without data (on the meta device, or offloaded).
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} has no data here (meta device, or offloaded): load the model's weights first")
    distinct = {id(tensor): tensor for tensor in tensors.values()}  # tied weights have several names
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # hashing releases the GIL
        found = dict(zip(distinct, threads.map(_hash, distinct.values()), strict=True))
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def _hash(tensor: Tensor) -> str:
    data = _bytes(tensor)
    state = (None if tensor.is_inference() else tensor._version, _sums(data))
    cached = _cached.get(tensor)
    if cached is None or cached[0] != state:
        cached = state, _sha256(data, f"{tensor.dtype} {list(tensor.shape)}")
        _cached[tensor] = cached
    return cached[1]


def _bytes(tensor: Tensor) -> Tensor:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return data.clone() if data.storage_offset() % 8 else data  # words of 8 bytes must be aligned


def _sums(data: Tensor) -> bytes:
    """Row and column sums of all words: a changed byte changes two of them, and so do two bytes that are swapped."""
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


# Sampled fingerprints of the first contexts, of some numbers of each weight; kept so that these contexts still open.

_SAMPLES = 1024  # numbers of each weight


def is_sampled(fingerprint: Mapping[str, Any]) -> bool:
    """Whether a fingerprint is a sampled one."""
    return "config" not in fingerprint


def sampled_fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """The sampled fingerprint of a model: about 1,024 numbers of each weight, and three fields of the config."""
    return _sampled_fields(text_config(model.config)) | {"number type": _number_type(model), "weights": _weights(model)}


def _sampled_fields(config: PretrainedConfig) -> dict[str, Any]:
    positions = {
        name: getattr(config, name, None) for name in ("rope_parameters", "max_position_embeddings", "sliding_window")
    }
    return _landmark_fields(config) | {"positions": json.dumps(positions, sort_keys=True, default=str)}


def _weights(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        numbers = weight.detach().flatten()
        sample = numbers[:: max(1, len(numbers) // _SAMPLES)].cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
