"""Fused attention against the dense reference in float64: outputs and every gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fused_cases import DEVICE, Case, assert_errs_at_most_twice, dense, fused, plain_half, results, rounding

from landmark.ops.fused import launch

_GOLDEN = Path(__file__).parents[2] / "golden" / "op"
_ALL = ("sinks", "key_mask", "document_ids")
_on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter cannot multiply bfloat16 matrices")
_with_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter is slow, and has one size of tile")

# The interpreter's tiles are 16 by 16: each case has several, or is named for what else it tests.
CASES = {
    "one token": Case(3, 1),
    "less than a block": Case(7, 5, groups=2),
    "landmark last": Case(7, 16, options={"phase": 0}, groups=3),
    "one more than whole blocks": Case(15, 33),
    "one less than whole blocks": Case(15, 31, dim=24),
    "blocks of one": Case(1, 35, options={"phase": 1}),
    "sixteen short blocks to two tiles": Case(3, 70, queries=35, options={"phase": 2}),
    "heads share keys": Case(7, 40, kv_heads=2, groups=2, options={"scale": -0.3}),
    "block wider than a tile of queries": Case(31, 70, options={"phase": 31}),
    "block as in the paper": Case(50, 110, queries=40, options={"phase": 20}, dim=24),
    "default block": Case(63, 140, queries=30),
    "default block and everything": Case(63, 70, batch=2, groups=2, extras=_ALL, options={"softcap": 2.0, "phase": 9}),
    "one query": Case(30, 100, queries=1, dim=80),
    "odd stride of 65": Case(64, 90, queries=30),
    "stride of 101": Case(100, 120, queries=30, dim=24),
    "packed": Case(3, 60, extras=("document_ids",)),
    "padded": Case(7, 40, batch=2, extras=("key_mask",)),
    "hardly capped": Case(7, 30, options={"softcap": 300.0}),
    "sinks": Case(7, 30, groups=2, extras=("sinks",)),
    "everything": Case(7, 45, 37, 2, 1, 2, 24, _ALL, {"softcap": 2.0, "phase": 5}),
    "long blocks": Case(130, 270, queries=10, options={"phase": 3}),
    "first of the long blocks": Case(128, 150, queries=24),
    "long blocks and everything": Case(130, 140, 20, 1, 1, 2, 16, _ALL, {"softcap": 2.0, "phase": 6}),
    "longer blocks": Case(200, 210, queries=12, dim=24, extras=("document_ids",)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=_on_gpu)])
def test_errs_at_most_twice_as_much_as_plain_pytorch(name, dtype):
    check(CASES[name], dtype)


@pytest.mark.parametrize("name", ["heads share keys", "default block", "everything", "long blocks"])
def test_float16_errs_at_most_twice_as_much_as_plain_pytorch(name):
    check(CASES[name], torch.float16)


@pytest.mark.parametrize("dim", [64, 100, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=_on_gpu)])
def test_wide_heads(dim, dtype):
    check(Case(15, 20, dim=dim), dtype)


@_with_gpu
@pytest.mark.parametrize(
    ("dtype", "dim", "block_size"),
    [
        *((torch.bfloat16, 64, block_size) for block_size in (1, 3, 7, 15, 31, 50, 63, 64, 100, 130, 200)),
        *((torch.bfloat16, dim, block_size) for dim in (96, 128, 256) for block_size in (63, 100)),
        *((torch.float16, 128, block_size) for block_size in (15, 63, 200)),
        *((torch.float32, dim, 63) for dim in (64, 128, 256)),
    ],
)
def test_many_tiles(dtype, dim, block_size):
    check(Case(block_size, 1111, 1000, 2, 2, 3, dim, options={"phase": 1}), dtype)
    check(Case(block_size, 777, None, 2, 1, 2, dim, _ALL, {"softcap": 5.0}), dtype)


@_with_gpu
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("number", [0, 1, 2, None], ids=["first", "second", "third", "tuned"])
def test_every_size_of_tile_that_may_be_chosen(number, dim, monkeypatch):
    def chosen(*args):
        tilings = launch.tilings(*args)
        return tilings if number is None else [tilings[min(number, len(tilings) - 1)]]

    monkeypatch.setattr(launch, "tilings", chosen)
    launch._tuned.cache_clear()
    check(Case(63, 600, 500, 1, 2, 2, dim, options={"phase": 1}), torch.bfloat16)
    launch._tuned.cache_clear()


def check(case, dtype):
    inputs, options, upstream = case.draw(dtype)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = results(dense, exact_inputs, options, upstream)
    plain = results(dense if dtype == torch.float32 else plain_half, inputs, options, upstream)
    found = results(fused, inputs, options, upstream)
    assert_errs_at_most_twice(found, plain, exact, rounding(inputs, options, upstream))


@pytest.mark.parametrize("name", sorted(path.stem for path in _GOLDEN.glob("*.npz")))
def test_golden(name):
    with np.load(_GOLDEN / f"{name}.npz") as file:
        case = {key: torch.from_numpy(file[key]) for key in ("q", "k", "v", "do", "o", "dq", "dk", "dv")}
        landmarks, stride = np.flatnonzero(file["is_mem"]), int(file["block"])
    if DEVICE == "cpu":  # heads do not know each other, and the interpreter is slow
        case = {key: x[-1:, -1:] for key, x in case.items()}
    phase = stride - 1 - int(landmarks[0]) if len(landmarks) else 0
    inputs = [case[key].to(DEVICE, torch.float32).requires_grad_() for key in ("q", "k", "v")]
    found = results(fused, inputs, {"block_size": stride - 1, "phase": phase}, case["do"].to(DEVICE))
    for x, key in zip(found, ("o", "dq", "dk", "dv"), strict=True):
        torch.testing.assert_close(x.cpu().double(), case[key], rtol=0, atol=2e-6 if key == "o" else 5e-6)


@pytest.mark.skipif(DEVICE == "cuda", reason="tiles of a GPU are chosen by measurement")
@pytest.mark.parametrize("tile", [{"M": 32, "N": 16}, {"M": 16, "N": 64}])
def test_other_tiles(tile, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED_TILE", tile)
    check(Case(7, 75, 60, 1, 1, 2, 16, ("sinks",), {"phase": 3}), torch.float32)
    check(Case(130, 160, 50, options={"phase": 3}), torch.float32)


def test_rows_that_see_nothing_are_zero_with_zero_gradients():
    inputs = [torch.randn(2, 1, 20, 16, device=DEVICE).requires_grad_() for _ in range(3)]
    mask = torch.ones(2, 20, dtype=torch.bool, device=DEVICE)
    mask[0] = False
    mask[1, :9] = False
    out, *grads = results(fused, inputs, {"block_size": 3, "key_mask": mask}, torch.ones_like(inputs[0]))
    assert all(x[0].eq(0).all() and x[1, :, :9].eq(0).all() for x in (out, *grads))
    assert out[1, :, 9:11].ne(0).all()


def test_a_landmark_of_nothing_keeps_its_gate():
    zeros, values = torch.zeros(1, 1, 2, 16, device=DEVICE), torch.full((1, 1, 2, 16), 6.0, device=DEVICE)
    out = fused(zeros, zeros, values, block_size=2, phase=2)
    assert out[0, 0, :, 0].tolist() == [0.0, 3.0]


def test_scores_of_very_different_blocks():
    key = torch.zeros(1, 1, 7, 16, device=DEVICE)
    key[0, 0, :, 0] = torch.tensor([-900.0, -900.0, 0.0, 900.0, 900.0, 0.0, 0.0])
    value = torch.tensor([1.0, 3.0, 0.0, 5.0, 7.0, 0.0, 0.0], device=DEVICE)[:, None].expand(1, 1, 7, 16)
    query = torch.ones(1, 1, 1, 16, device=DEVICE)
    out = fused(query, key, value, block_size=2, scale=1.0)
    torch.testing.assert_close(out, torch.full_like(out, 8 / 3))
