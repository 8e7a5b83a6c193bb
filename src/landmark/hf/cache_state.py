"""The state of a KV cache besides its blocks, as named tensors: with the blocks, enough to go on in another process."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from landmark.hf.cache import LandmarkCache
from landmark.hf.sliding import SlidingWindow
from landmark.memory import LayerMemory
from landmark.memory.window import WindowState

_WINDOW = ("keys", "values", "turned")
_SLIDING = ("keys", "values", "kept", "seen")


def cache_state(cache: LandmarkCache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors named "LAYER.NAME" and JSON-serializable metadata of a cache that has read something and was settled."""
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for layer, memory in enumerate(cache.memories):
        if isinstance(memory, LayerMemory):
            window, seen = memory.state()
            layers[str(layer)] = {"lengths": window.lengths, "seen": seen}
            named = zip(_WINDOW, window[:3], strict=True)
        else:
            named = ((name, getattr(memory, name)) for name in _SLIDING)
        tensors |= {f"{layer}.{name}": tensor.contiguous().cpu() for name, tensor in named}
    return tensors, {"layers": layers, "tokens": cache.tokens_read()}


def resume_cache(
    cache: LandmarkCache, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], blocks: int, device: torch.device
) -> None:
    """Restores what `cache_state` returned into a new cache whose storage holds `blocks` blocks a row."""
    for layer, memory in enumerate(cache.memories):
        if isinstance(memory, LayerMemory):
            saved = metadata["layers"][str(layer)]
            keys, values, turned = (tensors[f"{layer}.{name}"].to(device) for name in _WINDOW)
            window = WindowState(keys, values, turned, saved["lengths"])
            memory.resume(window, saved["seen"], [blocks] * len(saved["seen"]))
        else:
            assert isinstance(memory, SlidingWindow)
            for name in _SLIDING:
                setattr(memory, name, tensors[f"{layer}.{name}"].to(device))
    cache.resume(torch.tensor(metadata["tokens"], device=device))
