"""Blocks in int8: what a tier below the device gives back is the dequantized reference, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_cases import KINDS, below_the_device, read, rounded_blocks, some_blocks, steps

from landmark.store.base import BlockShape, BlockStore
from landmark.store.device import DeviceStore
from landmark.store.files import ExtentMap, FileStore
from landmark.store.int8 import Int8Store, pack, packed_shape, unpack
from landmark.store.tiered import TieredStore

BLOCK = BlockShape.of(*some_blocks(1))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [-2, -1])
def test_a_code_is_the_nearest_and_its_number_code_times_scale(dtype, dim):
    x = (torch.randn(3, 5, 8, 6) * torch.logspace(-3, 2, 6)).to(dtype)
    found = unpack(pack(x, dim), dim, stride=8, width=6, dtype=dtype)
    assert found.dtype == dtype
    scale = x.double().abs().amax(dim, keepdim=True) / 127
    rounding = torch.finfo(dtype).eps * x.double().abs()
    assert ((found.double() - x.double()).abs() <= 0.5001 * scale + rounding).all()


def test_channels_of_keys_and_tokens_of_values_do_not_disturb_each_other():
    keys, values = torch.randn(1, 1, 8, 6), torch.randn(1, 1, 8, 6)
    for x, dim, at in ((keys, -2, (..., slice(None), 2)), (values, -1, (..., 2, slice(None)))):
        before = unpack(pack(x, dim), dim, stride=8, width=6, dtype=x.dtype)
        x[at] = torch.tensor([1e6, *x[at].flatten()[1:]])
        after = unpack(pack(x, dim), dim, stride=8, width=6, dtype=x.dtype)
        changed = (before != after).any(dim)
        assert changed.sum() == 1, "only what shares the outlier's scale is rounded in another way"
        assert changed[..., 2].all()


def test_zeros_and_the_largest_number_come_back_and_nan_and_infinity_stay_what_they_are():
    x = torch.zeros(1, 4, 3)
    x[0, :, 1] = torch.tensor([127.0, -127.0, 3.0, 0.0])
    assert torch.equal(unpack(pack(x, -2), -2, stride=4, width=3, dtype=x.dtype), x)
    for bad in (torch.nan, torch.inf):
        x[0, 2, 2] = bad
        found = unpack(pack(x, -2), -2, stride=4, width=3, dtype=x.dtype)
        assert not found[0, 2, 2].isfinite()
        assert torch.equal(found[..., :2], x[..., :2])


@pytest.mark.parametrize("kind", KINDS)
@given(
    script=st.lists(steps, min_size=2, max_size=10),
    rows=st.integers(1, 2),
    groups=st.integers(1, 2),
    slots=st.integers(6, 8),
    dtype=st.sampled_from(DTYPES),
)
def test_is_read_as_a_device_store_of_dequantized_blocks_is(kind, script, rows, groups, slots, dtype):
    """Whether a block is in its slot since it was appended or was fetched; through appends, forks and moves."""
    heads, shape = 2 * groups, BLOCK._replace(dtype=dtype)
    budget = 3 * slots * rows * shape.nbytes
    below = TieredStore(Int8Store(below_the_device(kind, rows, 30 * rows * packed_shape(BLOCK).nbytes)), budget=budget)
    pairs: list[tuple[BlockStore, TieredStore]] = [(DeviceStore(rows), below)]
    for what, a, b in script:
        plain, store = pairs[-1]
        if what == "append":
            blocks = some_blocks(b, dtype)
            plain.append(a % len(store.counts), *rounded_blocks(*blocks))
            store.append(a % len(store.counts), *blocks)
        elif what == "reorder":
            order = torch.randint(len(store.counts), (a,), generator=torch.Generator().manual_seed(b)).tolist()
            for x in (plain, store):
                x.reorder(order)
        elif what == "fork" and len(pairs) < 3:
            pairs.append((plain.fork(), store.fork()))
            pairs = pairs[::-1] if a else pairs
        elif what == "read":
            for plain, store in pairs:
                if not any(store.counts):
                    continue
                wanted = torch.stack([torch.randint(-1, count, (heads, a, b)) for count in store.counts])
                for x, y in zip(read(store, wanted, heads), read(plain, wanted, heads), strict=True):
                    assert torch.equal(x, y)
    for _, store in pairs:
        assert store.nbytes == sum(store.counts) * packed_shape(shape).nbytes


def test_bytes_are_those_that_are_moved():
    store = TieredStore(Int8Store(FileStore([ExtentMap()])), budget=2 * BLOCK.nbytes)
    store.append(0, *some_blocks(4))  # 2 and 3 get slots
    read(store, torch.tensor([0, 1]).expand(1, 2, 1, -1), 2)
    kept = packed_shape(BLOCK)
    assert kept.nbytes == 2 * (4 * 3 + 3 * 4 + 4 * 5 + 4 * 4)  # codes of keys, scales; codes of values, scales
    assert store.traffic.file_bytes == 2 * kept.nbytes
    assert store.traffic.device_bytes == 2 * kept.nbytes
    large = BlockShape(2, 64, 64, 64, torch.float32)
    assert packed_shape(large).nbytes / large.nbytes == pytest.approx(0.27, abs=0.005)


def test_blocks_that_lie_in_files_are_there_from_the_start():
    files, blocks = FileStore([ExtentMap()]), some_blocks(5)
    Int8Store(files).append(0, *blocks)
    store = TieredStore(Int8Store(files, BLOCK), budget=3 * BLOCK.nbytes)
    found = read(store, torch.arange(5).expand(1, 2, 1, -1).transpose(2, 3), 2)
    for x, y in zip(found, rounded_blocks(*blocks), strict=True):
        assert torch.equal(x[0, :, :, 0], y)


def test_blocks_of_another_dtype_are_refused():
    store = Int8Store(FileStore([ExtentMap()]), BLOCK)
    with pytest.raises(ValueError, match=r"holds .*float32.*, not .*bfloat16.*: read on with the same model and dtype"):
        store.append(0, *some_blocks(1, torch.bfloat16))


def test_the_reference_is_what_the_format_says():
    keys, values = some_blocks(2)
    packed = pack(keys, -2)[1, 1, 0].numpy(), pack(values, -1)[1, 1, 0].numpy()
    for x, data, along in ((keys, packed[0], 0), (values, packed[1], 1)):
        x = x[1, 1].numpy()
        codes, scales = data[: x.size].reshape(x.shape), np.frombuffer(data[x.size :].tobytes(), "<f4")
        np.testing.assert_allclose(scales, np.abs(x).max(along) / 127, rtol=1e-6)
        assert np.abs(codes).max() == 127
        made = codes * np.expand_dims(scales, along)
        assert np.array_equal(made, (rounded_blocks(keys, values)[along][1, 1]).numpy())
