"""A tiered store gives back the blocks appended, whatever is read, reordered, forked or evicted."""

import errno

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_cases import KINDS, below_the_device, read, some_blocks, steps

from landmark.store.base import BlockShape, Traffic
from landmark.store.device import DeviceStore
from landmark.store.files import BlockFile, ExtentMap, FileStore
from landmark.store.tiered import TieredStore

BLOCK = BlockShape.of(*some_blocks(1))


def tiered(kind: str, rows: int, slots: int, shape: BlockShape = BLOCK, **options) -> TieredStore:
    budget = rows * shape.nbytes * slots
    below = below_the_device(kind, rows, budget + rows * shape.nbytes)
    return TieredStore(below, budget=budget, **options)


def numbers(counts: list[int], heads: int, length: int, k: int) -> torch.Tensor:
    """Random choices [B,H,T,k] among the blocks of each row; -1 among them."""
    return torch.stack([torch.randint(-1, count, (heads, length, k)) for count in counts])


@pytest.mark.parametrize("kind", KINDS)
@given(
    script=st.lists(steps, min_size=2, max_size=14),
    shared=st.sampled_from(["none", "heads", "queries"]),
    rows=st.integers(1, 2),
    groups=st.integers(1, 2),
    slots=st.integers(6, 8),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_is_read_as_a_device_store_is(kind, script, shared, rows, groups, slots, dtype):
    """`read` compares; appends after a fork must not be seen by the other side."""
    heads = 2 * groups
    shape = BLOCK._replace(dtype=dtype)
    pairs = [(DeviceStore(rows), tiered(kind, rows, 3 * slots, shape))]  # up to three rows share the budget later
    for what, a, b in script:
        plain, store = pairs[-1]
        if what == "append":
            blocks = some_blocks(b, dtype)
            for x in (plain, store):
                x.append(a % len(plain.counts), *blocks)
        elif what == "reorder":
            order = torch.randint(len(plain.counts), (a,), generator=torch.Generator().manual_seed(b)).tolist()
            for x in (plain, store):
                x.reorder(order)
        elif what == "fork" and len(pairs) < 4:
            pairs.append((plain.fork(), store.fork()))
            pairs = pairs[::-1] if a else pairs  # either side may go on
        elif what == "read":
            for plain, store in pairs:
                if not any(plain.counts):
                    continue
                wanted = numbers(plain.counts, 1 if shared == "heads" else heads, 1 if shared == "queries" else a, b)
                for x, y in zip(read(store, wanted, heads), read(plain, wanted, heads), strict=True):
                    assert torch.equal(x, y)
    for plain, store in pairs:
        assert store.nbytes == plain.nbytes
        assert store.counts == plain.counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_is_cut_where_its_blocks_do_not_fit(kind):
    store = tiered(kind, 1, slots=4)
    store.append(0, *some_blocks(10))
    wanted = torch.tensor([[0, 1], [2, 3], [0, 1], [4, 5], [6, 7], [6, -1]]).expand(1, 2, 6, 2)
    parts = [part for part, _ in store.pages(wanted)]
    assert parts == [slice(0, 3), slice(3, 6)]
    assert [part for part, _ in store.pages(wanted[:, :, 3:])] == [slice(None)]


def test_the_cache_keeps_the_blocks_read_last_and_counts_hits_misses_and_bytes():
    store = tiered("files", 1, slots=4)
    store.append(0, *some_blocks(6))  # 2 to 5 get slots
    for wanted, misses in (([2, 5], 0), ([0, 2], 1), ([2, 5, 0], 0), ([3], 1), ([0, 2, 3, 5], 0)):
        before = store.traffic
        read(store, torch.tensor(wanted).expand(1, 2, 1, -1), 2)
        found = store.traffic
        assert found.calls == before.calls + 1
        assert found.requested - before.requested == 2 * len(wanted)  # of two heads
        assert found.cache_misses - before.cache_misses == 2 * misses
        assert found.file_bytes - before.file_bytes == 2 * misses * BLOCK.piece_bytes
    assert found.device_bytes == 0
    assert found.cache_hits == found.requested - found.cache_misses


def test_blocks_are_distinct_within_a_key_value_head_only():
    blocks = torch.tensor([[[1, 2]], [[2, 3]], [[2, -1]], [[-1, -1]]])[None]

    def requested(kv_heads: int, rows: int = 1) -> int:
        shape = BLOCK._replace(heads=kv_heads)
        store = tiered("files", rows, slots=9, shape=shape)
        for row in range(rows):
            store.append(row, *some_blocks(4, heads=kv_heads))
        read(store, blocks.repeat(rows, 1, 1, 1), 4)
        return store.traffic.requested

    assert requested(kv_heads=2) == 3 + 1
    assert requested(kv_heads=4) == 2 + 2 + 1
    assert requested(kv_heads=1) == 3
    assert requested(kv_heads=2, rows=2) == 8


def test_tiers_count_their_own_traffic():
    store = tiered("two levels", 1, slots=2)  # over three
    store.append(0, *some_blocks(6))
    wanted = torch.tensor([3, 4]).expand(1, 2, 1, -1)
    read(store, wanted, 2)  # 4 is in a slot, 3 in one of the host
    moved = 2 * BLOCK.piece_bytes
    assert store.traffic == Traffic(calls=1, requested=4, cache_misses=2, file_bytes=0, device_bytes=moved)
    read(store, torch.tensor([0]).expand(1, 2, 1, -1), 2)
    assert store.traffic == Traffic(calls=2, requested=6, cache_misses=4, file_bytes=moved, device_bytes=2 * moved)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_bounded(kind):
    store = tiered(kind, 2, slots=3)
    for row in (0, 1, 1):
        store.append(row, *some_blocks(7))
    read(store, numbers(store.counts, 2, 9, 1), 2)
    tiers = [store, store._below] if kind == "two levels" else [store]
    for tier, slots in zip(tiers, (3, 4), strict=False):
        cached = tier.cached_blocks()
        assert cached.keys.nbytes + cached.values.nbytes == 2 * slots * BLOCK.nbytes
        assert tier.fork()._cache is None
    assert store.nbytes == 21 * BLOCK.nbytes


def test_a_budget_too_small_for_a_query_is_refused_with_what_one_takes():
    needed = 2 * BLOCK.nbytes * 4
    for budget, step_blocks in ((1, 1), (needed - 1, 4)):
        store = TieredStore(FileStore([ExtentMap(), ExtentMap()]), budget=budget, step_blocks=step_blocks)
        with pytest.raises(ValueError, match=rf"{budget} bytes .* blocks take {2 * BLOCK.nbytes * step_blocks} with"):
            store.append(0, *some_blocks(1))
        assert store.counts == [0, 0]
    store = TieredStore(FileStore([ExtentMap(), ExtentMap()]), budget=needed - 1)
    store.append(0, *some_blocks(9))
    wanted = torch.tensor([1, 3, 5, 7]).expand(2, 2, 1, 4).clone()
    wanted[1] = -1
    with pytest.raises(ValueError, match=rf"take {needed} with all rows: raise the budget, or lower retrieve"):
        next(store.pages(wanted))
    read(store, wanted[..., :3], 2)


def test_a_budget_too_small_is_refused_where_the_blocks_are_there_already():
    cold = FileStore([ExtentMap()])
    cold.append(0, *some_blocks(3))
    with pytest.raises(ValueError, match="too small for a single query"):
        TieredStore(cold, budget=2 * BLOCK.nbytes, step_blocks=3)
    grown = TieredStore(cold, budget=3 * BLOCK.nbytes, step_blocks=3)
    with pytest.raises(ValueError, match="lower retrieve, block_size or the number of rows"):
        grown.reorder([0, 0])
    assert grown.counts == [3]


def test_the_host_holds_at_least_what_the_device_does():
    with pytest.raises(ValueError, match="100 bytes on the host is less than the 200 of the device"):
        TieredStore(TieredStore(FileStore([ExtentMap()]), budget=100), budget=200)


def test_blocks_that_lie_in_files_are_there_from_the_start():
    cold, blocks = FileStore([ExtentMap()]), some_blocks(5)
    cold.append(0, *blocks)
    store = TieredStore(cold, budget=3 * BLOCK.nbytes)
    wanted = torch.tensor([4, 0]).expand(1, 2, 1, 2)
    assert torch.equal(read(store, wanted, 2)[0][0, :, 0], blocks[0][:, [4, 0]])


def test_a_full_disk_leaves_the_store_as_it_was(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    store, blocks = tiered("files", 1, slots=4), some_blocks(3)
    store.append(0, *blocks)
    with monkeypatch.context() as patch:
        patch.setattr(BlockFile, "_write_all", full)
        with pytest.raises(OSError, match="No space left"):
            store.append(0, *some_blocks(2))
    assert store.counts == [3]
    more = some_blocks(2)
    store.append(0, *more)
    found = read(store, torch.tensor([0, 2, 3, 4]).expand(1, 2, 1, 4), 2)[1]
    assert torch.equal(found[0, :, 0], torch.cat((blocks[1], more[1]), 1)[:, [0, 2, 3, 4]])


def test_blocks_that_could_not_be_read_are_read_again(monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    store, blocks = tiered("files", 1, slots=2), some_blocks(5)
    store.append(0, *blocks)
    wanted = torch.tensor([1, 0]).expand(1, 2, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(BlockFile, "read", broken)
        with pytest.raises(OSError, match="Input/output error"):
            read(store, wanted, 2)
    assert torch.equal(read(store, wanted, 2)[0][0, :, 0], blocks[0][:, [1, 0]])


def test_works_in_inference_mode_and_outside_of_it():
    store = tiered("two levels", 1, slots=2)
    with torch.inference_mode():
        first = some_blocks(3)
        store.append(0, *first)
        read(store, torch.tensor([0]).expand(1, 2, 1, 1), 2)
    store.append(0, *some_blocks(3))
    assert torch.equal(read(store, torch.tensor([1]).expand(1, 2, 1, 1), 2)[0][0, :, 0], first[0][:, [1]])
