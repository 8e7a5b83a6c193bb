"""Memories of one layer as the tests make them."""

from typing import Any

from landmark.memory import LayerMemory
from landmark.memory.storage import Storage
from landmark.settings import ReadingSettings


def layer_memory(
    *, block_size: int, storage: Storage | None = None, tied_landmarks: bool = False, **reading: Any
) -> LayerMemory:
    return LayerMemory(block_size, ReadingSettings(**reading), storage=storage, tied_landmarks=tied_landmarks)
