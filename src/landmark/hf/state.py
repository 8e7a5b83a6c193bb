"""What a cache holds besides blocks, as named tensors: enough, with the blocks, to go on in another process."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from landmark.hf.cache import LandmarkCache
from landmark.hf.sliding import SlidingWindow
from landmark.memory import LayerMemory
from landmark.memory.local import WindowState

_WINDOW = ("keys", "values", "turned")
_SLIDING = ("keys", "values", "kept", "seen")


def cache_state(cache: LandmarkCache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors named "LAYER.NAME", and JSON-able metadata, of a cache that has read something and was settled."""
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
    """Makes a new cache, whose storage holds `blocks` blocks a row, go on where `cache_state` was taken."""
    for layer, memory in enumerate(cache.memories):
        if isinstance(memory, LayerMemory):
            known = metadata["layers"][str(layer)]
            keys, values, turned = (tensors[f"{layer}.{name}"].to(device) for name in _WINDOW)
            window = WindowState(keys, values, turned, known["lengths"])
            memory.resume(window, known["seen"], [blocks] * len(known["seen"]))
        else:
            assert isinstance(memory, SlidingWindow)
            for name in _SLIDING:
                setattr(memory, name, tensors[f"{layer}.{name}"].to(device))
    cache.resume(torch.tensor(metadata["tokens"], device=device))
