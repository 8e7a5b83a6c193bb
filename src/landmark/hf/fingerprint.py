"""What tells one model from another: all that decides what it computes, so that refused differences can be named."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from landmark.hf.adapters import Adapters
from landmark.hf.compat import config_fields
from landmark.hf.sampled_fingerprint import is_sampled, sampled_fingerprint
from landmark.hf.settings import Settings, text_config
from landmark.hf.weights import hashes


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
