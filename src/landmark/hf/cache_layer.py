"""One layer of a cache in the form transformers asks for."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from landmark.hf.sliding import SlidingWindow
from landmark.memory import LayerMemory


class LandmarkLayer(CacheLayerMixin):
    """One layer of the cache: a memory, or the window of a native sliding layer.

    Keys and values pass through `update` untouched; the attention call works on `memory` or `window` itself.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, memory: LayerMemory | SlidingWindow) -> None:
        super().__init__()
        self.memory = memory

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        raise NotImplementedError("lengths belong to the whole cache: ask LandmarkCache.get_seq_length()")

    def get_max_length(self) -> int:
        return -1
