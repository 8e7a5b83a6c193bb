import copy
import errno
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_cases import some_blocks

from landmark.store.base import BlockShape, CacheMisses
from landmark.store.files import BlockFile, Extent, ExtentMap, FileStore, SpillFile

BLOCK = BlockShape.of(*some_blocks(1))


def fetched(store: FileStore, row: int, wanted: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [Hkv,n,..] of blocks of a row, through slots in the wrong order."""
    rows, count = len(store.counts), len(wanted)
    shape = store.shape
    assert shape is not None
    keys = torch.empty(rows, 2, count, 4, 3, dtype=shape.dtype)
    values = torch.empty(rows, 2, count, 4, 5, dtype=shape.dtype)
    heads, numbers = np.repeat([0, 1], count), np.tile(wanted, 2)
    slots = np.tile(np.arange(count)[::-1], 2)
    moved = store.fetch(CacheMisses(np.full(2 * count, row), heads, numbers, slots), keys, values)
    assert moved.file_bytes == 2 * count * shape.piece_bytes
    return keys[row].flip(1), values[row].flip(1)


@given(
    parts=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5), st.sampled_from(["", "fork", "move"])), min_size=1),
    dtype=st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_rows_that_share_a_file_keep_their_own_blocks(parts, dtype):
    """Appends to any row of either of two branches; `move` repeats a row, and both go on from there."""
    empty = some_blocks(0, dtype)
    branches = [(FileStore([ExtentMap() for _ in range(3)]), [empty] * 3)]
    for row, count, then in parts:
        store, rows = branches[-1]
        blocks = some_blocks(count, dtype)
        store.append(row, *blocks)
        rows[row] = tuple(torch.cat(x, 1) for x in zip(rows[row], blocks, strict=True))
        if then == "fork":
            branches = [(store.fork(), list(rows)), *branches][-2:]
        elif then == "move":
            store.reorder([row, row, 0])
            rows[:] = [rows[row], rows[row], rows[0]]
    for store, rows in branches:
        assert store.counts == [keys.shape[1] for keys, _ in rows]
        assert store.nbytes == sum(store.counts) * BLOCK._replace(dtype=dtype).nbytes
        for row, (keys, values) in enumerate(rows):
            order = torch.randperm(keys.shape[1]).tolist()
            if order:
                found = fetched(store, row, order)
                assert torch.equal(found[0], keys[:, order])
                assert torch.equal(found[1], values[:, order])


def test_consecutive_blocks_are_one_extent():
    spill = SpillFile(BLOCK)
    extents = ExtentMap((), spill)
    for count in (3, 1, 4):
        extents.append(*some_blocks(count))
    assert extents._extents == [Extent(spill, 0, 0, 0, 8)]
    other = extents.fork(spill)
    other.append(*some_blocks(2))
    extents.append(*some_blocks(1))
    assert extents.count == 9
    assert [extents.find(number)[2] for number in (0, 7, 8)] == [0, 7, 10]
    assert [other.find(number)[2] for number in (0, 7, 8, 9)] == [0, 7, 8, 9]


class Numbered(SpillFile):
    """A file that only one row can own: the record is the number of the block."""

    def allocate(self, number: int, count: int) -> int:
        return number


def test_only_one_branch_continues_in_a_file_of_its_own():
    blocks = some_blocks(3)
    store = FileStore([ExtentMap((), Numbered(BLOCK)), ExtentMap()])
    store.append(0, *blocks)
    branch = store.fork()
    store.reorder([0, 0])
    grown = []
    for some, row in ((store, 0), (store, 1), (branch, 0)):
        grown.append((some, row, some_blocks(2)))
        some.append(row, *grown[-1][2])
    for some, row, more in grown:
        assert torch.equal(fetched(some, row, [2, 3, 4])[0], torch.cat((blocks[0][:, 2:], more[0]), 1))


def test_a_file_lives_as_long_as_any_extent_map_refers_to_it():
    blocks = some_blocks(2)
    store = FileStore([ExtentMap()])
    store.append(0, *blocks)
    branch = store.fork()
    del store
    assert torch.equal(fetched(branch, 0, [0, 1])[0], blocks[0])


def test_blocks_of_another_shape_are_refused():
    store = FileStore([ExtentMap()])
    store.append(0, *some_blocks(1))
    with pytest.raises(ValueError, match=r"a spill file in .* holds BlockShape.*float32.*, not .*float64.*same model"):
        store.append(0, *some_blocks(1, torch.float64))
    assert store.counts == [1]


def test_a_spill_file_has_no_name(tmp_path):
    spill = SpillFile(BLOCK, tmp_path)
    spill.write(0, 0, *some_blocks(1))
    assert list(tmp_path.iterdir()) == []


class TestBlockFile:
    SHAPES = (BLOCK, BLOCK._replace(heads=1, key_dim=7, dtype=torch.bfloat16), BLOCK)

    def blocks(self, layer: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self.SHAPES[layer]
        return tuple(
            torch.randn(shape.heads, count, shape.stride, dim).to(shape.dtype)
            for dim in (shape.key_dim, shape.value_dim)
        )

    def test_every_layer_and_head_of_a_record_comes_back(self, tmp_path):
        with open(tmp_path / "x.blocks", "w+b") as raw:
            file = BlockFile(raw.fileno(), self.SHAPES, raw.name)
            blocks = [self.blocks(layer, 5) for layer in range(3)]
            for layer in (2, 0, 1):
                written = file.write(layer, 3, *blocks[layer])
                assert [len(data) for data in written] == [self.SHAPES[layer].nbytes] * 5
            for layer, (keys, values) in enumerate(blocks):
                for head in range(keys.shape[0]):
                    room = torch.empty_like(keys[0, 0]), torch.empty_like(values[0, 0])
                    file.prefetch(layer, head, 6)
                    file.read(layer, head, 6, *(memoryview(x.view(-1).view(torch.uint8).numpy()) for x in room))
                    assert torch.equal(room[0], keys[head, 3])
                    assert torch.equal(room[1], values[head, 3])

    def test_a_file_that_was_cut_short_is_named(self, tmp_path):
        with open(tmp_path / "x.blocks", "w+b") as raw:
            file = BlockFile(raw.fileno(), self.SHAPES, raw.name)
            file.write(2, 0, *self.blocks(2, 2))
            raw.truncate(2 * file.record_bytes - 1)
            room = [memoryview(bytearray(size)) for size in (BLOCK.key_bytes, BLOCK.piece_bytes - BLOCK.key_bytes)]
            file.read(2, 0, 1, *room)
            with pytest.raises(OSError, match=r"x\.blocks ends inside block record 1, layer 2: it was cut short"):
                file.read(2, 1, 1, *room)

    def test_an_error_of_the_system_names_the_file(self, tmp_path):
        path = tmp_path / "x.blocks"
        path.touch()
        with open(path, "wb") as raw:  # not for reading
            file = BlockFile(raw.fileno(), self.SHAPES, raw.name)
            with pytest.raises(OSError, match=r"x\.blocks") as caught:
                file.read(0, 0, 0, memoryview(bytearray(1)), memoryview(bytearray(1)))
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("way", [pickle.dumps, copy.deepcopy])
def test_blocks_in_a_file_are_not_pickled(way):
    store = FileStore([ExtentMap()])
    store.append(0, *some_blocks(1))
    with pytest.raises(ValueError, match=r"cannot be pickled or copied with it: copy a cache by its fork\(\)"):
        way(store)
