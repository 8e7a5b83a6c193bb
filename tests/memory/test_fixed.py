"""A step over tensors of fixed shape gives what the memory gives, and reads nothing on the host."""

import copy

import pytest
import torch
from memory_cases import DIM, layer_memory, rotation

from landmark.index.options import IndexOptions
from landmark.memory import LayerMemory
from landmark.memory.blocks import Opened
from landmark.memory.fixed import attend_fixed, places_of
from landmark.memory.storage import ProcessStorage
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

HEADS, KV_HEADS, BLOCK = 4, 2, 3


def heads_of(rows: int, width: int, heads: int) -> torch.Tensor:
    return torch.randn(rows, heads, width, DIM, dtype=torch.float64)


def qkv(rows: int, width: int) -> tuple[torch.Tensor, ...]:
    return heads_of(rows, width, HEADS), heads_of(rows, width, KV_HEADS), heads_of(rows, width, KV_HEADS)


def memory(lengths: list[int], **options) -> LayerMemory:
    """A memory that has read so many stream positions in each row."""
    made = layer_memory(block_size=BLOCK, storage=ProcessStorage(IndexOptions("exact")), **options)
    read(made, lengths)
    return made


def read(made: LayerMemory, lengths: list[int]) -> None:
    left = list(lengths)
    while any(left):
        valid = [min(new, 5) for new in left]
        made.attend(*qkv(len(lengths), max(valid)), lengths=valid, rotation=rotation())
        left = [new - some for new, some in zip(left, valid, strict=True)]


def step(made: LayerMemory, query, key, value, valid: list[int], scoring: Scoring) -> torch.Tensor:
    """`LayerMemory.attend` by tensors of fixed shape."""
    made.settle(rotation())
    counts = torch.tensor(made.step_counts(valid, query.shape[2], rotation()))
    places = places_of(counts, query.shape[2], made.settings, made.stride)
    out, opened = attend_fixed(made.fixed(query.shape[2]), places, query, key, value, rotation(), scoring)
    asking = torch.tensor([new if count else 0 for new, count in zip(valid, made.blocks_read or valid, strict=True)])
    made.count_step(valid, None if opened is None else Opened(*opened, asking))
    return out


def decoded_alike(one: LayerMemory, other: LayerMemory, steps: int, scoring: Scoring = Scoring()) -> None:  # noqa: B008
    """Checks some steps through two memories, the first by tensors of fixed shape."""
    for _ in range(steps):
        rows = len(one.lengths)
        # A token that completes its block is followed by its landmark.
        valid = [2 if seen % one.stride == one.block_size - 1 else 1 for seen in one.lengths.tolist()]
        query, key, value = qkv(rows, max(valid))
        found = step(one, query, key, value, valid, scoring)
        expected = other.attend(query, key, value, lengths=valid, rotation=rotation(), scoring=scoring)
        for row, new in enumerate(valid):
            torch.testing.assert_close(found[row, :, :new], expected[row, :, :new], atol=1e-6, rtol=1e-6)
        assert (one.last is None) == (other.last is None)
        if one.last is not None and other.last is not None:
            k = other.last.blocks.shape[-1]
            assert torch.equal(one.last.blocks[..., :k], other.last.blocks)
            assert (one.last.blocks[..., k:] == -1).all()
            torch.testing.assert_close(
                one.last.gates[..., :k].to(other.last.gates), other.last.gates, atol=1e-6, rtol=1e-6
            )
            torch.testing.assert_close(one.last.local.to(other.last.local), other.last.local, atol=1e-6, rtol=1e-6)
            assert torch.equal(one.last.asking, other.last.asking)
        assert one.retrievals == other.retrievals
        assert torch.equal(one.lengths, other.lengths)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 40])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"local_blocks": 0},
        {"retrieve": 1},
        {"retrieve": 0},
        {"max_blocks": 3},
        {"max_blocks": 1},
        {"constant_keys": True},
        {"constant_keys": True, "max_blocks": 3},
    ],
)
def test_steps_give_what_memory_gives(length, options):
    torch.manual_seed(0)
    one = memory([length], **{"retrieve": 2} | options)
    decoded_alike(one, copy.deepcopy(one), 14)


def test_rows_of_different_lengths():
    one = memory([23, 2, 8, 12], retrieve=2)
    decoded_alike(one, copy.deepcopy(one), 14)


def test_soft_caps_and_sinks():
    one = memory([23], retrieve=2)
    scoring = Scoring(softcap=2.0, sinks=torch.randn(HEADS, dtype=torch.float64))
    decoded_alike(one, copy.deepcopy(one), 6, scoring)


def test_forks_go_on_by_themselves():
    parent = memory([23], retrieve=2)
    one, other = parent.fork(), copy.deepcopy(parent)
    decoded_alike(one, other, 6)
    read(parent, [30])
    decoded_alike(one, other, 6)
    decoded_alike(one.fork(), other, 6)


def test_an_eager_step_on_a_device_reads_nothing_on_the_host():
    """A tensor on the device "meta" has a shape and no numbers: reading one is an error."""
    made = layer_memory(block_size=BLOCK, retrieve=2)
    tables = rotation()
    tables = Rotation(tables.cos.to("meta"), tables.sin.to("meta"), tables.style)
    for _ in range(40):
        made.attend(*(x.to("meta") for x in qkv(2, 1)), lengths=None, rotation=tables)
    assert made.last is not None
    with pytest.raises(RuntimeError, match="meta"):
        made.last.gates.sum().item()
