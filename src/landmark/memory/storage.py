"""Storage of the blocks behind a local window: makes the index and the store of a layer, within memory budgets."""

from dataclasses import dataclass, field, replace
from typing import Protocol, get_args

import torch

from landmark.index.base import Index
from landmark.index.options import IndexOptions, make_index
from landmark.settings import KvDtype
from landmark.store.base import BackingStore, BlockShape, BlockStore, check_budget, parse_bytes
from landmark.store.device import DeviceStore
from landmark.store.files import ExtentMap, FileStore
from landmark.store.int8 import Int8Store
from landmark.store.tiered import TieredStore


class Storage(Protocol):
    """Makes the index and the store of a layer, when it reads its first chunk."""

    def index(self, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device) -> Index:
        """An index for `rows` rows; `constant_keys` is that of `LayerMemory`."""
        ...

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        """A store for `rows` rows that compute on `device`."""
        ...

    def fork(self) -> "Storage":
        """The storage of a fork: nothing that the fork reads goes where the original writes."""
        ...


@dataclass(frozen=True)
class Budgets:
    """Memory budgets of one layer's blocks, in bytes.

    Attributes:
        host: bytes in host memory, None for no budget.
        device: bytes on the device, None for no budget.
        step_blocks: blocks of a key-value head that a single query may open.
        kv_dtype: in which blocks are kept below the device, None for that of the model.
    """

    host: int | None = None
    device: int | None = None
    step_blocks: int = 1
    kv_dtype: KvDtype | None = None

    @classmethod
    def shared(
        cls,
        host: int | str | None,
        device: int | str | None,
        kv_dtype: KvDtype | None,
        *,
        layers: int,
        step_blocks: int,
    ) -> "Budgets":
        """Budgets of one of `layers` layers that share `host` and `device`, in bytes or as text such as "256MB".

        Raises ValueError for what is neither, and for a `kv_dtype` that there is not.
        """
        if kv_dtype not in (None, *get_args(KvDtype)):
            raise ValueError(f"kv_dtype is {kv_dtype!r}: give 'int8', or None for the dtype of the model")
        host, device = (
            None if given is None else parse_bytes(name, given) // layers
            for name, given in (("host_budget", host), ("device_budget", device))
        )
        return cls(host, device, step_blocks, kv_dtype)

    def check(self, shape: BlockShape) -> None:
        """Raises ValueError if a budget does not hold the blocks of this `shape` that one query may open."""
        for budget in (self.host, self.device):
            if budget is not None:
                check_budget(budget, shape, 1, self.step_blocks)

    def over(self, below: BackingStore, device: torch.device, shape: BlockShape | None = None) -> TieredStore:
        """A cache of slots on `device` over `below`; on a GPU with a host budget, another one in host memory between.

        All that is below the device is in `kv_dtype`; `shape` is that of the blocks on the device, where there are
        some. A missing device budget is as large as the host's. Raises ValueError for a device budget on a CPU, whose
        memory is the host's, and for budgets that are too small.
        """
        if device.type == "cpu" and self.device is not None:
            raise ValueError("device_budget is for GPUs: on a CPU, give host_budget")
        budget = self.host if self.device is None else self.device
        assert budget is not None, "a budget is what slots are made for"
        below = self.under(below, device, shape)
        return TieredStore(below, budget=budget, device=device, step_blocks=self.step_blocks)

    def under(self, below: BackingStore, device: torch.device, shape: BlockShape | None = None) -> BackingStore:
        """What `over` puts between `device` and the tier `below`."""
        if device.type != "cpu" and self.host is not None:
            below = TieredStore(below, budget=self.host, step_blocks=self.step_blocks)
        return below if self.kv_dtype is None else Int8Store(below, shape)

    def beside(self, nbytes: int) -> "Budgets":
        """The budgets of blocks behind others, of `nbytes` bytes, that stay on the device."""
        if self.device is None:
            return self
        left = self.device - nbytes
        return replace(self, device=left if self.host is None else min(left, self.host))


@dataclass(frozen=True)
class ProcessStorage:
    """Storage that lives as long as the process; implements `Storage`.

    Without budgets all blocks stay on the device. With a host budget those that do not fit are offloaded to temporary
    files, with a device budget alone to host memory.
    """

    options: IndexOptions = field(default_factory=IndexOptions)
    budgets: Budgets = field(default_factory=Budgets)

    def index(self, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device) -> Index:
        return make_index(self.options, rows, max_blocks, constant_keys=constant_keys, device=device)

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        if self.budgets.host is None and self.budgets.device is None:
            if self.budgets.kv_dtype is not None:
                raise ValueError(
                    f"kv_dtype is {self.budgets.kv_dtype!r}, for blocks below the device, and without a budget all stay"
                    " on it: give host_budget or device_budget too"
                )
            return DeviceStore(rows, max_blocks)
        if max_blocks is not None:
            raise ValueError(
                f"max_blocks is {max_blocks} beside a budget: give one of them, for files keep what a budget leaves out"
            )
        below = DeviceStore(rows) if self.budgets.host is None else FileStore(ExtentMap() for _ in range(rows))
        return self.budgets.over(below, device)

    def fork(self) -> "ProcessStorage":
        return self
