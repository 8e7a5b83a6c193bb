"""Memories of one layer and rotary tables, as the tests make them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from landmark.memory import LayerMemory
from landmark.memory.storage import Storage
from landmark.ops import parallel
from landmark.ops.rotary import Rotation
from landmark.settings import ReadingSettings

DIM = 6
SELECTIONS = ["per_token_and_head", "per_group", "per_token", "per_head"]


def layer_memory(
    *, block_size: int, storage: Storage | None = None, constant_keys: bool = False, **reading: Any
) -> LayerMemory:
    return LayerMemory(block_size, ReadingSettings(**reading), storage=storage, constant_keys=constant_keys)


def rotation(positions: int = 400, dim: int = DIM, dtype: torch.dtype = torch.float64) -> Rotation:
    angles = torch.outer(torch.arange(positions).double(), 30.0 ** (-torch.arange(0, dim, 2).double() / dim))
    angles = torch.cat((angles, angles), -1)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), "half")


def quarter_turns() -> Rotation:
    """Angles are multiples of 90 degrees: whole numbers stay whole, so equal scores are exactly equal."""
    angles = torch.outer(torch.arange(400), torch.tensor([1, 2, 3])) % 4
    angles = torch.cat((angles, angles), -1)
    cos, sin = torch.tensor([1.0, 0.0, -1.0, 0.0]).double(), torch.tensor([0.0, 1.0, 0.0, -1.0]).double()
    return Rotation(cos[angles], sin[angles], "half")


@contextmanager
def working_on(threads: int) -> Iterator[None]:
    """Compiled loops share even little work among so many threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_WORTH_A_THREAD", 1)
        patch.setattr(parallel, "_WORTH_A_PART", 1)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(1)
