"""What a memory refuses, what it keeps, and how much room it needs to work."""

import weakref

import pytest
import torch
from memory_cases import DIM, SELECTIONS, layer_memory, rotation
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landmark.memory import LayerMemory


def read(memory: LayerMemory, length: int, rows: int = 1, **options) -> torch.Tensor:
    """Reads a chunk of noise."""
    qkv = [torch.randn(rows, 2, length, DIM, dtype=torch.float64) for _ in range(3)]
    return memory.attend(*qkv, **{"rotation": rotation(), "lengths": None, **options})


def test_only_the_newest_blocks_are_kept():
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=0, max_blocks=4)
    for length in (40, 43, 1):
        read(memory, length)
    # Keys and values of four blocks, their landmark keys, and a tail of three with the position just read.
    assert memory.nbytes == 2 * ((2 * 4 * 4 + 2 * 4) * DIM * 8 + 4 * DIM * 4)
    full = memory.nbytes
    for length in (39, 1):
        read(memory, length)
    assert memory.nbytes == full
    assert memory.last.blocks.min() >= 30 - 4


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._known.setdefault(tensor.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known[storage] = size = storage.nbytes()
                weakref.finalize(storage, self._freed, size)
                self.now += size
                self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_long_chunk_needs_little_memory(selection):
    memory = layer_memory(block_size=63, retrieve=4, selection=selection, local_blocks=2)
    table = rotation(4096, 64, torch.float32)
    qkv = [torch.randn(1, 8, 2048, 64) for _ in range(3)]
    memory.attend(*qkv, lengths=None, rotation=table)
    with LiveBytes() as live:
        memory.attend(*qkv, lengths=None, rotation=table)
    assert memory.last is not None
    # Gathered all at once the blocks would take 2 GiB. The store doubles meanwhile, which counts here.
    assert live.peak < 64 << 20
    assert live.largest <= 16 << 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"retrieve": -1}, "retrieve is -1"),
        ({"selection": "best"}, "selection is 'best': choose one of per_token_and_head"),
        ({"local_blocks": -2}, "local_blocks is -2"),
        ({"gap": -1}, "gap is -1: give a whole number, 0 or more"),
        ({"gap": 8, "positions": "true"}, "gap is 8: true positions leave no gap"),
        ({"max_blocks": 0}, "max_blocks is 0"),
        ({"positions": "far"}, "positions is 'far': choose"),
    ],
)
def test_settings_that_mean_nothing_are_rejected(wrong, message):
    with pytest.raises(ValueError, match=message):
        layer_memory(**{"block_size": 3, "retrieve": 2, "local_blocks": 1, **wrong})


def test_a_chunk_beyond_the_table_is_rejected_before_any_work():
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=1)
    read(memory, 30, rotation=rotation(30))
    arithmetic = r"ends at rotary position 25 and the rotation table at 24.*\(2 \+ 1 \+ 1\) \* 4"
    with pytest.raises(ValueError, match=arithmetic):
        read(memory, 7, rotation=rotation(24))
    assert memory.lengths.tolist() == [30]
    read(memory, 7, rotation=rotation(25))


def test_true_positions_need_a_table_for_the_whole_text():
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=1, positions="true")
    read(memory, 30, rotation=rotation(37))
    with pytest.raises(ValueError, match=r"position 38 and the rotation table at 37: .* hold the whole text"):
        read(memory, 8, rotation=rotation(37))
    read(memory, 7, rotation=rotation(37))


def test_another_number_of_rows_is_rejected():
    memory = layer_memory(block_size=3, retrieve=2, local_blocks=1)
    read(memory, 5, rows=2)
    with pytest.raises(ValueError, match="holds 2 rows, the chunk has 3"):
        read(memory, 5, rows=3)
    with pytest.raises(ValueError, match=r"lengths \[6, 1\]"):
        read(memory, 5, rows=2, lengths=[6, 1])
