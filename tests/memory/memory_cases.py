"""Memories of one layer as the tests make them."""

from typing import Any

from landmark.memory import LayerMemory
from landmark.memory.storage import Storage
from landmark.settings import ReadingSettings


def layer_memory(
    *, block_size: int, storage: Storage | None = None, constant_keys: bool = False, **reading: Any
) -> LayerMemory:
    return LayerMemory(block_size, ReadingSettings(**reading), storage=storage, constant_keys=constant_keys)
