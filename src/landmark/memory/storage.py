"""Where a layer keeps the blocks that leave its local window: an index for their landmarks, a store for the rest."""

from dataclasses import dataclass, field
from typing import Protocol

import torch

from landmark.index.base import Index
from landmark.index.options import IndexOptions, make_index
from landmark.store.base import BackingStore, BlockShape, BlockStore, check_budget, parse_bytes
from landmark.store.device import DeviceStore
from landmark.store.files import ExtentMap, FileStore
from landmark.store.tiered import TieredStore


class Storage(Protocol):
    """Makes the index and the store of one layer when its first chunk comes."""

    def index(self, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device) -> Index:
        """For `rows` rows; `constant_keys` promises that all landmark keys will be equal."""
        ...

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        """For `rows` rows that compute on `device`."""
        ...


@dataclass(frozen=True)
class Budgets:
    """Bytes that one layer's blocks may take in host memory and on the device; None where nothing was said.

    A single query may open `step_blocks` blocks of a key-value head.
    """

    host: int | None = None
    device: int | None = None
    step_blocks: int = 1

    @classmethod
    def shared(cls, host: int | str | None, device: int | str | None, *, layers: int, step_blocks: int) -> "Budgets":
        """Budgets of one of `layers` layers that share what is given, in bytes or as text such as "256MB"."""
        host, device = (
            None if given is None else parse_bytes(name, given) // layers
            for name, given in (("host_budget", host), ("device_budget", device))
        )
        return cls(host, device, step_blocks)

    def check(self, shape: BlockShape) -> None:
        """Raises ValueError if one of them holds less than a query of one row needs of blocks of this `shape`."""
        for budget in (self.host, self.device):
            if budget is not None:
                check_budget(budget, shape, 1, self.step_blocks)

    def over(self, below: BackingStore, device: torch.device) -> TieredStore:
        """Slots on `device` over `below`, and where that is a GPU slots of the host between, if it has a budget.

        A device budget that was not given is as large as the host's. Raises ValueError for one on a CPU, whose memory
        is the host's, and for budgets that are too small.
        """
        if device.type == "cpu" and self.device is not None:
            raise ValueError("device_budget is for GPUs: on a CPU, give host_budget")
        budget = self.host if self.device is None else self.device
        assert budget is not None, "a budget is what slots are made for"
        if device.type != "cpu" and self.host is not None:
            below = TieredStore(below, budget=self.host, step_blocks=self.step_blocks)
        return TieredStore(below, budget=budget, device=device, step_blocks=self.step_blocks)


@dataclass(frozen=True)
class ProcessStorage:
    """Blocks that live as long as the process; implements `Storage`.

    Without budgets all of them stay on the device. With a host budget those that do not fit lie in temporary files,
    with a device budget alone in host memory.
    """

    options: IndexOptions = field(default_factory=IndexOptions)
    budgets: Budgets = field(default_factory=Budgets)

    def index(self, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device) -> Index:
        return make_index(self.options, rows, max_blocks, constant_keys=constant_keys, device=device)

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        if self.budgets.host is None and self.budgets.device is None:
            return DeviceStore(rows, max_blocks)
        if max_blocks is not None:
            raise ValueError(
                f"max_blocks is {max_blocks} beside a budget: give one of them, for files keep what a budget leaves out"
            )
        below = DeviceStore(rows) if self.budgets.host is None else FileStore(ExtentMap() for _ in range(rows))
        return self.budgets.over(below, device)
