"""NaN in what is read spreads to nobody who does not see it."""

import pytest
import torch
from memory_cases import layer_memory

from landmark.index.options import IndexOptions
from landmark.memory.storage import ProcessStorage
from landmark.ops.rotary import Rotation

BLOCK, DIM, ROWS = 3, 8, 2
CHUNKS = (17, 1, 9, 600, 2, 1, 5)  # loops, dense matrices and blockwise attention


def rotation():
    angle = torch.arange(2000.0)[:, None] / torch.logspace(0, 2, DIM // 2)
    angle = torch.cat((angle, angle), 1)
    return Rotation(angle.cos(), angle.sin(), "half")


def read(q, k, v, lengths=None, dtype=torch.float32, kind="auto"):
    memory = layer_memory(block_size=BLOCK, retrieve=2, local_blocks=2, storage=ProcessStorage(IndexOptions(kind)))
    outs, start = [], 0
    for step, chunk in enumerate(CHUNKS):
        part = slice(start, start + chunk)
        valid = None if lengths is None else lengths[step]
        outs.append(
            memory.attend(*(x[:, :, part].to(dtype) for x in (q, k, v)), lengths=valid, rotation=rotation()).float()
        )
        start += chunk
    return torch.cat(outs, 2)


def stream():
    return [torch.randn(ROWS, heads, sum(CHUNKS), DIM) for heads in (4, 2, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_values_of_landmarks_are_not_read(dtype, number):
    q, k, v = stream()
    wanted = read(q, k, v, dtype=dtype)
    v[:, :, BLOCK :: BLOCK + 1] = number
    assert torch.equal(read(q, k, v, dtype=dtype), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_not_read(dtype):
    q, k, v = stream()
    lengths = [[chunk, max(0, chunk - 1 - step % 3)] for step, chunk in enumerate(CHUNKS)]
    real = torch.cat([torch.arange(c) < torch.tensor(x)[:, None] for c, x in zip(CHUNKS, lengths, strict=True)], 1)
    real = real[:, None, :, None]
    wanted = read(q, k, v, lengths, dtype)
    found = read(*(x.masked_fill(~real, torch.nan) for x in (q, k, v)), lengths, dtype)
    assert torch.equal(found.masked_fill(~real, 0.0), wanted.masked_fill(~real, 0.0))


@pytest.mark.parametrize("kind", ["exact", "hierarchical"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_other_rows_and_heads_choose_as_before(kind, number):
    q, k, v = stream()
    wanted = read(q, k, v, kind=kind)
    k[0, 0, 3::8] = number
    found = read(q, k, v, kind=kind)
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0, 2:], wanted[0, 2:])
