import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.ops.retrieved import Pages, retrieved_attention
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring

pytest.importorskip("triton")

from landmark.ops import retrieved, triton_support
from landmark.ops.retrieved import gpu

# Without a GPU the kernels run in Triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter multiplies bfloat16 wrongly"),
)
DTYPES = [torch.float32, torch.float16, BFLOAT16]
USED, UNUSED = 6, 3  # pages
POSITIONS = 300


def rotation(style: str, width: int) -> Rotation:
    angles = torch.outer(torch.arange(POSITIONS).double(), 100.0 ** -torch.linspace(0, 1, width // 2).double())
    angles = angles.repeat_interleave(2, -1) if style == "interleaved" else torch.cat((angles, angles), -1)
    return Rotation(angles.cos().float().to(DEVICE), angles.sin().float().to(DEVICE), style)


def case(dtype, *, rows=1, kv_heads=2, groups=2, length, k, stride, dim=16, value_dim=None, shared="none"):
    """A call's query, pages and distance: some pairs without a block, NaN where no query may look."""
    heads, value_dim = kv_heads * groups, value_dim or dim
    query = torch.randn(rows, heads, length, dim)
    keys = torch.randn(rows, kv_heads, USED + UNUSED, stride, dim)
    values = torch.randn(rows, kv_heads, USED + UNUSED, stride, value_dim)
    keys[:, :, USED:], values[:, :, USED:], values[:, :, :, -1] = torch.nan, torch.nan, torch.nan
    some_heads = {"heads": 1, "groups": kv_heads}.get(shared, heads)
    some_queries = 1 if shared == "queries" else length
    table = torch.randint(-1, USED, (rows, some_heads, some_queries, k))
    table[-1, :, :, -1] = -1  # a row with fewer blocks
    distance = torch.randint(POSITIONS, (rows, some_heads, length, k))
    query, keys, values = (x.to(DEVICE, dtype) for x in (query, keys, values))
    return query, Pages(keys, values, table.to(DEVICE)), distance.to(DEVICE)


@contextmanager
def poisoned():
    """Uninitialised tensors are NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def in_float64(query, pages, distance, **options):
    pages = Pages(pages.keys.double(), pages.values.double(), pages.table)
    return retrieved_attention(query.double(), pages, distance, **options, backend="gathered")


def rounding(query, pages, distance, **options):
    """How far results move in float64 where every number moves by up to its rounding in float32."""
    generator = torch.Generator().manual_seed(0)

    def moved(x):
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return x.double() * (1 + torch.finfo(torch.float32).eps * (2 * noise - 1))

    found = []
    for _ in range(3):
        others = Pages(moved(pages.keys), moved(pages.values), pages.table)
        found.append(in_float64(moved(query), others, distance, **options))
    return found


def assert_as_exact_as_gathered(query, pages, distance, *, products=torch.float32, **options):
    """Errors at most twice those of plain PyTorch, and two roundings in the dtype of `products`.

    Where plain PyTorch has luck on one processor: at most four times what rounding the inputs does, for sums are
    rounded besides, in two products one after the other.
    """
    with poisoned():
        found = retrieved_attention(query, pages, distance, **options, backend="triton")
    plain = retrieved_attention(query, pages, distance, **options, backend="gathered")
    exact = in_float64(query, pages, distance, **options)
    moved = zip(*rounding(query, pages, distance, **options), strict=True)
    for ours, theirs, true, others in zip(found, plain, exact, moved, strict=True):
        assert ours.dtype == torch.float32
        there = true > -torch.inf
        assert torch.equal(ours > -torch.inf, there)
        by_rounding = max((other - true)[there].abs().max() for other in others)
        limit = max(2 * (theirs - true)[there].abs().max(), 4 * by_rounding)
        limit = limit + 2 * torch.finfo(products).eps * true[there].abs().max()
        assert (ours - true)[there].abs().max() <= limit


ONE_BY_ONE = {
    "one query": {"rows": 2, "length": 1, "k": 3, "stride": 64},
    "two queries of short blocks": {"groups": 1, "length": 2, "k": 4, "stride": 2},
    "long blocks, other widths": {"length": 1, "k": 2, "stride": 130, "dim": 80, "value_dim": 24},
    "heads share": {"length": 1, "k": 3, "stride": 17, "shared": "heads"},
}
IN_TILES = {
    "two queries of short blocks": {"length": 2, "k": 4, "stride": 2},
    "several tiles to a block": {"rows": 2, "kv_heads": 1, "length": 33, "k": 2, "stride": 4},
    "many heads to a group": {"kv_heads": 1, "groups": 3, "length": 7, "k": 3, "stride": 64, "dim": 64},
    "long blocks, other widths": {"kv_heads": 1, "length": 7, "k": 2, "stride": 130, "dim": 24, "value_dim": 80},
    "heads share": {"length": 7, "k": 3, "stride": 17, "shared": "heads"},
    "heads of a group share": {"groups": 3, "length": 7, "k": 3, "stride": 17, "shared": "groups"},
    "queries share": {"length": 33, "k": 2, "stride": 17, "shared": "queries"},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_reads_one_by_one_as_exactly_as_gathered(shape, dtype):
    assert_as_exact_as_gathered(*case(dtype, **shape), rotation=rotation("half", 16), scoring=Scoring(0.3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", IN_TILES.values(), ids=IN_TILES)
def test_reads_in_tiles_as_exactly_as_gathered(shape, dtype, monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PAIRS", 0)
    monkeypatch.setattr(gpu, "_TILE_BYTES", 1 << 10)  # long blocks take several steps
    assert_as_exact_as_gathered(
        *case(dtype, **shape), products=dtype, rotation=rotation("half", 16), scoring=Scoring(0.3)
    )


def test_large_tiles(monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PAIRS", 0)
    monkeypatch.setattr(gpu, "_SHARED_FROM", 0)
    shape = {"kv_heads": 1, "groups": 2, "length": 60, "k": 2, "stride": 16}
    call = case(torch.float16, **shape)
    assert_as_exact_as_gathered(*call, products=torch.float16, rotation=rotation("half", 16), scoring=Scoring(0.3))


@pytest.mark.parametrize("few", [0, 4096])
@pytest.mark.parametrize("style", ["half", "interleaved", "none"])
@pytest.mark.parametrize("softcap", [None, 1.5, 50.0])
def test_styles_and_caps(style, softcap, few, monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PAIRS", few)
    call = case(torch.float32, kv_heads=1, length=2, k=2, stride=5, dim=20)
    # Four dimensions stay as they are.
    assert_as_exact_as_gathered(*call, rotation=rotation(style, 16), scoring=Scoring(0.3, softcap))


@pytest.mark.parametrize("few", [0, 4096])
def test_ten_runs_are_the_same_to_the_bit(few, monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PAIRS", few)
    call = case(torch.float16, kv_heads=1, length=3, k=2, stride=4)
    options = {"rotation": rotation("half", 16), "scoring": Scoring(0.3), "backend": "triton"}
    first, *others = [retrieved_attention(*call, **options) for _ in range(10)]
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize("few", [0, 4096])
def test_blocks_beyond_two_to_the_31_elements(few, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PAIRS", few)
    stride, dim = 2, 16
    count = (1 << 31) // (stride * dim) + 2
    room = count * stride * dim
    if DEVICE == "cpu":  # a file with a hole: nothing but the pages in use takes memory
        data = torch.from_file(str(tmp_path / "pages"), shared=True, size=room, dtype=torch.float16)
    else:
        data = torch.empty(room, dtype=torch.float16, device=DEVICE)
    pages = data.view(1, 1, count, stride, dim)
    pages[:, :, -1] = torch.randn(stride, dim)
    query = torch.randn(1, 1, 2, dim, device=DEVICE).half()
    table, distance = (torch.full((1, 1, 2, 1), x, device=DEVICE) for x in (count - 1, 0))
    options = {"rotation": rotation("none", 2), "scoring": Scoring(0.3)}
    inside, gates = retrieved_attention(query, Pages(pages, pages, table), distance, **options, backend="triton")
    last = pages[:, :, -1:].clone()
    exact = in_float64(query, Pages(last, last, torch.zeros_like(table)), distance, **options)
    torch.testing.assert_close(inside.double(), exact[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(gates.double(), exact[1], atol=1e-3, rtol=0)


def test_tiles_may_run_in_any_order(monkeypatch):
    monkeypatch.setattr(gpu, "_FEW_PAIRS", 0)
    call = case(torch.float32, length=9, k=3, stride=4)
    options = {"rotation": rotation("half", 16), "scoring": Scoring(0.3), "backend": "triton"}
    forwards = retrieved_attention(*call, **options)
    tiles = gpu._shared_tiles

    def from_the_last(*arguments):
        order, starts = tiles(*arguments)
        return order, starts.flip(0)

    monkeypatch.setattr(gpu, "_shared_tiles", from_the_last)
    backwards = retrieved_attention(*call, **options)
    assert all(torch.equal(x, y) for x, y in zip(forwards, backwards, strict=True))


@given(
    heads=st.integers(1, 3),
    pairs=st.integers(1, 60),
    capacity=st.integers(1, 9),
    size=st.sampled_from([1, 2, 4, 16]),
    skew=st.sampled_from([1, 3]),
)
def test_every_pair_is_in_one_tile_of_its_block(heads, pairs, capacity, size, skew):
    table = torch.stack([torch.randint(-1, capacity, (heads, pairs)) for _ in range(skew)]).amin(0)
    order, starts = gpu._shared_tiles(table, capacity, size)
    pages = torch.where(table < 0, -1, table + capacity * torch.arange(heads)[:, None]).flatten()
    assert sorted(order.tolist()) == list(range(heads * pairs))
    tiles = []
    for start in starts[starts < heads * pairs].tolist():
        those = order[start : start + size]
        tiles.append(those[pages[those] == pages[those[0]]])  # as in the kernel
    assert torch.equal(torch.cat(tiles), order)
    assert all((tile.diff() > 0).all() for tile in tiles)


def test_names_what_serves_instead(monkeypatch):
    options = {"rotation": rotation("half", 16), "scoring": Scoring(0.3), "backend": "triton"}
    query, pages, distance = case(torch.float32, length=1, k=1, stride=2)
    wide = Pages(*(x.double() for x in pages[:2]), pages.table)
    instead = "numba" if DEVICE == "cpu" else "gathered"
    with pytest.raises(ValueError, match=f"not torch.float64; use backend='{instead}'"):
        retrieved_attention(query.double(), wide, distance, **options)
    with pytest.raises(ValueError, match=r"one dtype and device.*use backend='gathered'"):
        retrieved_attention(query, wide, distance, **options)
    with pytest.raises(ValueError, match=f"head_dim up to 256, not 272; use backend='{instead}'"):
        retrieved_attention(*case(torch.float32, length=1, k=1, stride=2, dim=272), **options)
    monkeypatch.setattr(triton_support, "_INSTALLED", False)
    with pytest.raises(ValueError, match=f"triton, which is not installed .*; use backend='{instead}'"):
        retrieved_attention(query, pages, distance, **options)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU is served without the interpreter")
def test_a_cpu_is_served_by_the_interpreter_only(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    call = case(torch.float16, length=1, k=1, stride=2)
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU of .* not cpu; use backend='(gathered|numba)'"):
        retrieved_attention(*call, rotation=rotation("half", 16), scoring=Scoring(0.3), backend="triton")


def test_auto_takes_kernels_on_a_gpu_only(monkeypatch):
    def refuse(*_):
        raise NotImplementedError

    monkeypatch.setattr(*(gpu, "triton_blocks") if DEVICE == "cuda" else (retrieved, "numba_blocks"), refuse)
    with pytest.raises(NotImplementedError):
        retrieved_attention(
            *case(torch.float32, length=1, k=1, stride=2), rotation=rotation("half", 16), scoring=Scoring(0.3)
        )


@pytest.mark.parametrize(
    "options",
    [
        "--dtypes bfloat16 --dims 128 --strides 64 --groups 4",
        "--dtypes float32 --dims 80 --strides 130 --groups 16",
    ],
)
def test_compiles_for_gpus_without_spilling(options, tmp_path):
    program = [sys.executable, str(Path(__file__).with_name("compile_reading.py")), *options.split()]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()]
    searching = {"best_of_part_kernel", "best_of_all_kernel", "choose_blocks_kernel"}
    assert {x["kernel"] for x in found} == {"blocks_kernel", *searching}
    for used in found:
        assert used["stack"] == 0, used
        assert used["shared"] <= 99 << 10, used  # what the GPUs with least have
