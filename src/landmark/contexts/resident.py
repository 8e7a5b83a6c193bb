"""The blocks of a context in the memory of a GPU: they are brought there when it is opened to be asked, if they fit.

Opened blocks are then read in place, and steps of decoding can be graphs (`landmark.hf.step_graph`). Blocks that do not
fit are read through tiers, as they are on a CPU, whose memory is the host's.
"""

import threading

import torch

from landmark.contexts.disk import Progress
from landmark.contexts.snapshot import Snapshot
from landmark.contexts.storage import extent_map
from landmark.contexts.writer import Writer
from landmark.memory.storage import Budgets
from landmark.store.base import ResidentBlocks
from landmark.store.files import FileStore
from landmark.store.resident import bring, room_for

_KEPT_FREE = 4  # a quarter of a GPU's memory: branches, forwards and other programs take theirs there
_TAKING = threading.Lock()  # a server opens contexts in several threads


def brought(
    snapshot: Snapshot, budgets: Budgets, device: torch.device, progress: Progress | None = None
) -> list[ResidentBlocks | None]:
    """All blocks of each layer on `device`, checked; None for each where they do not fit or there is no such memory.

    They fit a device budget if it has room for those of a query beside them; without one, if a quarter of the device's
    memory stays free. A context that is open for writing reads through tiers. `progress` is called with the bytes that
    were brought, and with all. Raises Damage where blocks are damaged.
    """
    shapes, blocks = snapshot.layout.blocks, snapshot.blocks
    if not blocks or isinstance(snapshot, Writer) or not _has_memory(device):
        return [None] * len(shapes)
    with _TAKING:
        if not _fit(snapshot, budgets, device):
            return [None] * len(shapes)
        try:
            rooms = [room_for(shape, blocks, device) for shape in shapes]
        except torch.OutOfMemoryError:  # a budget may be more than there is
            return [None] * len(shapes)
    done, total = 0, sum(room.nbytes for room in rooms)
    for layer, (room, shape) in enumerate(zip(rooms, shapes, strict=True)):
        below = budgets.under(FileStore([extent_map(snapshot, layer)]), device, shape)
        for nbytes in bring(below, room, budgets.host):
            done += nbytes
            if progress is not None:
                progress(done, total)
    return [*rooms]


def _fit(snapshot: Snapshot, budgets: Budgets, device: torch.device) -> bool:
    blocks, sizes = snapshot.blocks, [shape.nbytes for shape in snapshot.layout.blocks]
    if budgets.device is None:
        free, total = _free_and_all(device)
        return blocks * sum(sizes) <= free - total // _KEPT_FREE
    return max(sizes) * (blocks + budgets.step_blocks) <= budgets.device


def _has_memory(device: torch.device) -> bool:
    """Whether a device has memory of its own, which can be measured."""
    return device.type == "cuda"


def _free_and_all(device: torch.device) -> tuple[int, int]:
    return torch.cuda.mem_get_info(device)
