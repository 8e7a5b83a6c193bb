"""A store with its first blocks in place gives back all blocks, whatever is appended, read, forked or evicted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_cases import KINDS, at_pages, below_the_device, some_blocks, steps

from landmark.ops.retrieved import Pages
from landmark.store.base import BackingStore, BlockShape, Traffic
from landmark.store.device import DeviceStore
from landmark.store.files import BlockFile
from landmark.store.int8 import Int8Store
from landmark.store.resident import ResidentStore, bring, room_for
from landmark.store.tiered import TieredStore

HEADS, CPU = 2, torch.device("cpu")
BLOCK = BlockShape.of(*some_blocks(1))


def stores(kind: str, count: int, slots: int) -> tuple[DeviceStore, ResidentStore]:
    """The same blocks in a plain store and in a resident one, which has so many slots for more."""
    plain, below = DeviceStore(1), below_the_device(kind, 1, (slots + 1) * BLOCK.nbytes)
    blocks = some_blocks(count)
    for store in (plain, below):
        store.append(0, *blocks)
    return plain, resident(below, count, slots)


def resident(below: BackingStore, count: int, slots: int) -> ResidentStore:
    room = room_for(BLOCK, count, CPU)
    assert sum(bring(below, room, 3 * BLOCK.nbytes)) == count * BLOCK.nbytes
    return ResidentStore(room, TieredStore(below, budget=slots * BLOCK.nbytes))


def read(store, blocks: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values of `blocks`, 0 where there is no block."""
    parts = [found(pages) for _, pages in store.pages(blocks)]
    return [torch.cat(pieces, 2) for pieces in zip(*parts, strict=True)]


def found(pages: Pages) -> list[torch.Tensor]:
    here = [at_pages(x, pages.table, HEADS) for x in pages[:2]]
    if pages.behind is None:
        return here
    assert ((pages.table < 0) | (pages.behind.table < 0)).all(), "a block lies in one place"
    return [one + other for one, other in zip(here, found(pages.behind), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@given(
    script=st.lists(steps, min_size=2, max_size=14),
    first=st.integers(1, 7),
    slots=st.integers(6, 30),
    tail=st.booleans(),
)
def test_is_read_as_a_device_store_is(kind, script, first, slots, tail):
    pairs = [stores(kind, first, 3 * slots)]
    for what, a, b in script:
        plain, store = pairs[-1]
        if what == "append":
            blocks = some_blocks(b)
            for x in (plain, store):
                x.append(a % len(plain.counts), *blocks)
        elif what == "reorder" and tail:
            order = torch.randint(len(plain.counts), (a,), generator=torch.Generator().manual_seed(b)).tolist()
            for x in (plain, store):
                x.reorder(order)
        elif what == "fork" and len(pairs) < 4:
            pairs.append((plain.fork(), store.fork()))
            pairs = pairs[::-1] if a else pairs
        elif what == "read":
            for plain, store in pairs:
                wanted = torch.stack([torch.randint(-1, count, (HEADS, a, b)) for count in plain.counts])
                for x, y in zip(read(store, wanted), read(plain, wanted), strict=True):
                    assert torch.equal(x, y)
    for plain, store in pairs:
        assert store.nbytes == plain.nbytes


def test_forks_share_the_first_blocks_and_have_their_own_behind():
    plain, store = stores("files", 5, slots=4)
    base = store.resident_blocks()
    forks = [store.fork() for _ in range(3)]
    assert all(fork.resident_blocks().keys is base.keys for fork in forks)
    more = some_blocks(3)
    for x in (plain, forks[0]):
        x.append(0, *more)
    assert forks[0].resident_blocks().behind is not None
    assert forks[1].resident_blocks() is base
    grandchild = forks[0].fork()
    (part,) = grandchild.pages(torch.arange(8).expand(1, HEADS, 1, 8))
    assert grandchild.resident_blocks().behind is not None, "those behind were fetched in order"
    assert torch.equal(found(part[1])[0], read(plain, torch.arange(8).expand(1, HEADS, 1, 8))[0])
    assert grandchild.traffic.file_bytes == 3 * BLOCK.nbytes


def test_more_than_there_are_slots_for_is_read_through_the_tier():
    plain, store = stores("files", 5, slots=4)
    for count, fits in ((4, True), (1, False)):
        blocks = some_blocks(count)
        for x in (plain, store):
            x.append(0, *blocks)
        assert (store.resident_blocks() is not None) == fits
        wanted = torch.randint(-1, 5 + count, (1, HEADS, 7, 3))
        assert torch.equal(read(store, wanted)[1], read(plain, wanted)[1])
    assert store.fork().resident_blocks() is None


def test_nothing_is_counted_or_cached_where_only_the_first_blocks_are_read():
    _, store = stores("files", 5, slots=4)
    list(store.pages(torch.randint(5, (1, HEADS, 7, 3))))
    assert store.traffic == Traffic()
    assert store._tier._cache is None


def test_beams_are_read_through_the_tier():
    plain, store = stores("files", 5, slots=8)
    for x in (plain, store):
        x.reorder([0, 0])
    assert store.resident_blocks() is None
    wanted = torch.randint(5, (2, HEADS, 3, 2))
    assert torch.equal(read(store, wanted)[0], read(plain, wanted)[0])


def test_blocks_in_int8_are_brought_as_they_are_fetched():
    below = Int8Store(below_the_device("files", 1, 0))
    below.append(0, *some_blocks(7))
    store, tier = resident(below, 7, slots=9), TieredStore(below, budget=9 * BLOCK.nbytes)
    wanted = torch.arange(7).expand(1, HEADS, 1, 7)
    for x, y in zip(read(store, wanted), read(tier, wanted), strict=True):
        assert torch.equal(x, y)


def test_an_error_while_a_fork_fetches_its_own_is_raised_and_read_again(monkeypatch):
    plain, store = stores("files", 5, slots=4)
    blocks = some_blocks(2)
    for x in (plain, store):
        x.append(0, *blocks)
    fork, wanted = store.fork(), torch.tensor([1, 5, 6]).expand(1, HEADS, 1, 3)

    def broken(*args):
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(BlockFile, "read", broken)
        with pytest.raises(OSError, match="Input/output"):
            list(fork.pages(wanted))
    assert torch.equal(read(fork, wanted)[0], read(plain, wanted)[0])
