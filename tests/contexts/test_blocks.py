"""Blocks are compared with their checksums when they are first read from disk in a process."""

import pytest
import torch
from flips import flipped, read_blocks
from made import HELD, LAYOUT, Content, add, check, commit

from landmark.contexts.disk import Damage
from landmark.contexts.snapshot import open_reader
from landmark.contexts.writer import open_writer
from landmark.store.files import Extent, ExtentMap, FileStore
from landmark.store.tiered import TieredStore


def read(segment, layer, head, record):
    shape = LAYOUT.blocks[layer]
    keys, values = bytearray(shape.key_bytes), bytearray(shape.piece_bytes - shape.key_bytes)
    segment.blocks.read(layer, head, record, memoryview(keys), memoryview(values))
    return bytes(keys + values)


def offset_of(segment, layer, head, record):
    blocks = segment.blocks
    return record * blocks.record_bytes + blocks.layer_starts[layer] + head * LAYOUT.blocks[layer].piece_bytes


@pytest.mark.parametrize("flipped_head", [0, 1])
@pytest.mark.parametrize("head", [0, 1])
def test_a_head_finds_the_damage_of_another(path, head, flipped_head):
    (segment,) = open_reader(path).segments
    with (
        flipped(segment.path("blocks"), offset_of(segment, 1, flipped_head, 1) + 5, 3),
        pytest.raises(Damage, match=r"000001\.blocks is damaged in block 1, layer 1"),
    ):
        read(segment, 1, head, 1)
    read_blocks(segment)
    check(open_reader(path), HELD)


def test_a_block_is_compared_once(path):
    (segment,) = open_reader(path).segments
    sound = [read(segment, 1, head, 0) for head in (0, 1)]
    file, at = segment.path("blocks"), offset_of(segment, 1, 1, 0)
    with flipped(file, at, 0):
        assert read(segment, 1, 0, 0) == sound[0], "of what was checked, a head reads its own piece alone"
        assert read(segment, 1, 1, 0) != sound[1]
        with pytest.raises(Damage):
            read(open_reader(path).segments[0], 1, 0, 0)


def test_a_writer_compares_what_was_committed_before_it_came(path):
    with open_writer(path) as writer:
        after = commit(writer, add(writer, HELD, (), (5,)))
        (segment,) = writer.segments
        with flipped(segment.path("blocks"), offset_of(segment, 0, 0, 2), 0):
            read(segment, 0, 0, 2)
        with flipped(segment.path("blocks"), offset_of(segment, 0, 0, 1), 0), pytest.raises(Damage, match="block 1"):
            read(segment, 0, 0, 1)
        check(writer, after)
        check(open_reader(path), Content(after.documents, after.blocks, after.state))


def test_damaged_blocks_are_not_kept_in_slots(path):
    """A store that met damage reads the block again when it is wanted again."""
    (segment,) = open_reader(path).segments
    extents = [Extent(segment.blocks, 1, 0, 0, segment.count)]
    store = TieredStore(FileStore([ExtentMap(extents)]), budget=1 << 20)
    wanted = torch.tensor([[[[0, 1]], [[1, 0]]]])
    with flipped(segment.path("blocks"), offset_of(segment, 1, 0, 0), 0):
        for _ in range(2):
            with pytest.raises(Damage, match="block 0, layer 1"):
                list(store.pages(wanted))
    list(store.pages(wanted))
