"""Wherever blocks lie, and however few of them fit, a memory computes the same numbers to the last bit."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import DIM, SELECTIONS, layer_memory, rotation, working_on

from landmark.memory import LayerMemory
from landmark.memory.storage import ProcessStorage
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import working_dtype
from landmark.store.base import BlockStore
from landmark.store.device import DeviceStore
from landmark.store.files import ExtentMap, FileStore
from landmark.store.int8 import Int8Store, pack, unpack
from landmark.store.tiered import TieredStore

STRIDE, KV_HEADS, TOP_K = 4, 2, 2
TIERS = ("host", "files", "two levels")


@dataclass(frozen=True)
class Tiers(ProcessStorage):
    """Slots for `slots` blocks of every row and key-value head."""

    kind: str = "files"
    slots: int = 4
    itemsize: int = 8
    int8: bool = False

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        budget = self.slots * rows * KV_HEADS * STRIDE * 2 * DIM * self.itemsize
        below = DeviceStore(rows) if self.kind == "host" else FileStore(ExtentMap() for _ in range(rows))
        if self.kind == "two levels":
            below = TieredStore(below, budget=2 * budget)
        return TieredStore(Int8Store(below) if self.int8 else below, budget=budget, device=device)


class DequantizedStore(DeviceStore):
    """All blocks on the device, as int8 below it would give them back."""

    def append(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        shape = {"stride": STRIDE, "width": DIM, "dtype": keys.dtype}
        super().append(row, unpack(pack(keys, -2), -2, **shape), unpack(pack(values, -1), -1, **shape))


class Dequantized(ProcessStorage):
    """Storage in a `DequantizedStore`."""

    def store(self, rows: int, max_blocks: int | None, *, device: torch.device) -> BlockStore:
        return DequantizedStore(rows, max_blocks)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tier", TIERS)
@settings(max_examples=40)  # of each of the six
@given(
    chunks=st.lists(st.one_of(st.just([1, 1]), st.lists(st.integers(0, 40), min_size=2, max_size=2)), max_size=8),
    selection=st.sampled_from(SELECTIONS),
    local_blocks=st.integers(0, 1),
    groups=st.integers(1, 2),
    slots=st.integers(4, 6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    constant=st.booleans(),
    turn=st.booleans(),
    threads=st.integers(1, 2),
)
def test_every_tier_computes_the_same_bits(
    tier, int8, chunks, selection, local_blocks, groups, slots, dtype, constant, turn, threads
):
    """Ragged rows that read [40, 25], then chunks of any length or single tokens; rows change places on the way."""
    settings = {"block_size": STRIDE - 1, "retrieve": TOP_K, "selection": selection, "local_blocks": local_blocks}
    storages = Dequantized() if int8 else None, Tiers(kind=tier, slots=slots, itemsize=dtype.itemsize, int8=int8)
    memories = [layer_memory(**settings, constant_keys=constant, storage=kept) for kept in storages]
    landmark = torch.randn(2, KV_HEADS, 1, DIM)
    turning = rotation(dtype=working_dtype(torch.empty(0, dtype=dtype)))
    for number, lengths in enumerate([[40, 25], *chunks, [1, 1]]):
        width, seen = max(1, *lengths), memories[0].lengths.tolist() or [0, 0]
        query, key, value = (torch.randn(2, heads, width, DIM) for heads in (groups * KV_HEADS, KV_HEADS, KV_HEADS))
        for row in range(2):
            ends = (torch.arange(width) + seen[row]) % STRIDE == STRIDE - 1
            key[row, :, ends] = landmark[0] if constant else key[row, :, ends]
        chunk = [x.to(dtype) for x in (query, key, value)]
        with working_on(threads):
            outs = [memory.attend(*chunk, lengths=lengths, rotation=turning) for memory in memories]
        for row, length in enumerate(lengths):
            assert torch.equal(outs[0][row, :, :length], outs[1][row, :, :length])
        if memories[0].last is not None:
            assert torch.equal(memories[0].last.gates, memories[1].last.gates)
        if turn and number % 3 == 1:
            for memory in memories:
                memory.reorder(torch.tensor([1, number % 2]))
    assert int8 or memories[0].nbytes == memories[1].nbytes


@pytest.mark.parametrize("tier", TIERS)
def test_forks_share_what_was_read_and_go_on_alone(tier):
    settings = {"block_size": STRIDE - 1, "retrieve": TOP_K, "local_blocks": 1}
    memories = [layer_memory(**settings, storage=kept) for kept in (None, Tiers(kind=tier))]
    turning = rotation(dtype=torch.float64)

    def both(some: list[LayerMemory], length: int) -> None:
        chunk = [torch.randn(1, KV_HEADS, length, DIM).double() for _ in range(3)]
        first, second = (memory.attend(*chunk, lengths=None, rotation=turning) for memory in some)
        assert torch.equal(first, second)

    both(memories, 50)
    both(memories, 1)
    branches = [memory.fork() for memory in memories]
    for some in (branches, memories, branches, memories):
        both(some, 20)
        both(some, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tier", ["host", "two levels"])  # files fill slots of the host alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("int8", [False, True])
def test_slots_on_a_gpu_serve_it_as_a_buffer_there_does(tier, dtype, int8):
    storages = Dequantized() if int8 else None, Tiers(kind=tier, slots=8, itemsize=dtype.itemsize, int8=int8)
    memories = [layer_memory(block_size=STRIDE - 1, retrieve=TOP_K, local_blocks=1, storage=s) for s in storages]
    turning = rotation(dtype=torch.float32)
    turning = Rotation(turning.cos.cuda(), turning.sin.cuda(), turning.style)
    for length in (40, 30, 1, 1, 1):
        chunk = [torch.randn(2, KV_HEADS, length, DIM, device="cuda").to(dtype) for _ in range(3)]
        first, second = (memory.attend(*chunk, lengths=None, rotation=turning) for memory in memories)
        torch.testing.assert_close(second, first)
        for memory in memories:
            memory.reorder(torch.tensor([1, 1], device="cuda"))


def test_a_budget_too_small_for_a_query_is_an_error_of_one_clear_line():
    memory = layer_memory(block_size=STRIDE - 1, retrieve=TOP_K, local_blocks=0, storage=Tiers(slots=1))
    chunk = [torch.randn(1, KV_HEADS, 40, DIM).double() for _ in range(3)]
    memory.attend(*chunk, lengths=None, rotation=rotation(dtype=torch.float64))
    with pytest.raises(ValueError, match=r"budget of 768 bytes is too small .* take 1536 with all rows: raise the"):
        memory.attend(*chunk, lengths=None, rotation=rotation(dtype=torch.float64))


class FullOnce(DeviceStore):
    """Fails to take blocks of the second row, once."""

    failed = False

    def append(self, row, keys, values):
        if row == 1 and not self.failed:
            self.failed = True
            raise OSError(28, "No space left on device")
        super().append(row, keys, values)


class FullOnceStorage(ProcessStorage):
    def store(self, rows, max_blocks, *, device):
        return FullOnce(rows)


def test_a_chunk_can_be_read_again_after_a_full_disk():
    generator = torch.Generator().manual_seed(0)
    chunks = [torch.randn(3, 2, KV_HEADS, 9, DIM, generator=generator) for _ in range(4)]
    outputs = []
    for storage in (None, FullOnceStorage()):
        memory = layer_memory(block_size=STRIDE - 1, retrieve=TOP_K, local_blocks=1, storage=storage)
        for chunk in chunks:
            try:
                out = memory.attend(*chunk, lengths=None, rotation=rotation(dtype=torch.float32))
            except OSError:
                out = memory.attend(*chunk, lengths=None, rotation=rotation(dtype=torch.float32))
        outputs.append(out)
        assert memory.lengths.tolist() == [36, 36]
    assert torch.equal(*outputs)
