"""Chunks read through memory against exact cases of one layer; see golden/cached_attn/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from memory_cases import layer_memory

from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "cached_attn" / "bs8.npz"))
NAMES = sorted({name.split("/")[0] for name in GOLDEN if "/" in name})
STRIDE = 8


def rotation(dtype: torch.dtype) -> Rotation:
    angles = torch.outer(torch.arange(400, dtype=torch.float64), torch.tensor(GOLDEN["freqs"]).double())
    angles = angles.repeat_interleave(2, -1)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), "interleaved")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_golden(name, dtype, tolerance):
    _, retrieve, most, selection = name.split("-")
    query, key, value = (torch.tensor(GOLDEN[x]).to(dtype) for x in "qkv")
    case = {x: torch.tensor(GOLDEN[f"{name}/{x}"]) for x in ("lens", "start_index", "blocks", "o")}
    memory = layer_memory(
        block_size=STRIDE - 1, retrieve=int(retrieve[1:]), selection=selection, local_blocks=0, max_blocks=int(most[1:])
    )
    stop = 0
    for length, place in zip(case["lens"].tolist(), case["start_index"].tolist(), strict=True):
        chunk = slice(stop, stop + length)
        stop += length
        # A table that ends with the chunk's last position proves where the chunk stands.
        table = rotation(dtype)
        table = Rotation(table.cos[: place + length], table.sin[: place + length], table.style)
        q, k, v = (x[:, :, chunk] for x in (query, key, value))
        out = memory.attend(q, k, v, lengths=None, rotation=table, scoring=Scoring(0.25))
        torch.testing.assert_close(out.double(), case["o"][:, :, chunk], atol=tolerance, rtol=0)
        expected = case["blocks"][:, :, chunk].long()
        opened = memory.last
        if opened is None:
            assert (expected < 0).all()
        else:
            k = opened.blocks.shape[-1]
            assert torch.equal(opened.blocks, expected[..., :k])
            assert (expected[..., k:] < 0).all()
    assert memory.lengths.tolist() == [stop]
