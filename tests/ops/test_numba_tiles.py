import numpy as np
import pytest

from landmark.ops.numba_loops import compiled
from landmark.ops.numba_tiles import LANES, add_product, exp, gated_softmax_tile, soft_cap_tile, to_columns


@compiled
def product(a, b, out):
    add_product(a, b, out)


@compiled
def exponentials(x, out):
    for i in range(len(x)):
        out[i] = exp(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "depth"), [(64, 64), (51, 7), (1, 1), (5, 0), (0, 3)])
@pytest.mark.parametrize("layout", ["whole", "transposed", "every third"])
def test_products_of_any_shape_and_strides(dtype, rows, depth, layout):
    random = np.random.default_rng(0)
    shape = {"whole": (rows, depth), "transposed": (depth, rows), "every third": (3 * rows, depth)}[layout]
    a = random.standard_normal(shape).astype(dtype)
    a = {"whole": a, "transposed": a.T, "every third": a[::3]}[layout]
    b, out = (random.standard_normal((n, LANES)).astype(dtype) for n in (depth, rows))
    expected = out.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    product(a, b, out)
    np.testing.assert_allclose(out, expected, rtol=0, atol=depth * 4 * np.finfo(dtype).eps)


@pytest.mark.parametrize(("dtype", "least"), [(np.float32, -87.0), (np.float64, -700.0)])
def test_exponentials(dtype, least):
    x = np.linspace(least, 0, 100_001).astype(dtype)
    out = np.empty_like(x)
    exponentials(x, out)
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=2 * np.finfo(dtype).eps)
    few = np.array([-1e4, -np.inf, np.nan, 0.0], dtype)
    exponentials(few, few)
    np.testing.assert_array_equal(few, [0.0, 0.0, np.nan, 1.0])


def test_softmax_of_a_block_times_its_gate():
    random = np.random.default_rng(0)
    scores, gates = 20 * random.standard_normal((9, LANES)).astype(np.float32), random.random(LANES).astype(np.float32)
    scores[:, 3] = np.nan  # spoils its own column
    weights = np.exp(scores.astype(np.float64) - scores.max(0))
    expected = weights / weights.sum(0) * gates
    gated_softmax_tile(scores, gates, np.empty_like(gates), np.empty_like(gates))
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)


def test_columns_and_soft_caps():
    rows, tile = np.random.default_rng(0).standard_normal((5, 7)), np.zeros((7, LANES))
    to_columns(rows, tile)
    np.testing.assert_array_equal(tile[:, :5], rows.T)
    assert not tile[:, 5:].any()
    capped = tile.copy()
    soft_cap_tile(capped, 0.0)
    np.testing.assert_array_equal(capped, tile)
    soft_cap_tile(capped, 0.7)
    np.testing.assert_allclose(capped, 0.7 * np.tanh(tile / 0.7), rtol=1e-14)
