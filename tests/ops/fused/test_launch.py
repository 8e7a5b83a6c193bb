"""The fused backend as PyTorch sees it: memory, repetition, dropout, tracing, checkpoints, reading, refusals."""

import pytest
import torch
from fused_cases import DEVICE, Case, dense, dense_weights, fused, results
from torch.utils.checkpoint import checkpoint

from landmark.ops import triton_support
from landmark.ops.attention import landmark_attention
from landmark.ops.blockwise import blockwise_attention
from landmark.ops.fused import fused_forward
from landmark.ops.fused.launch import forward_op
from landmark.ops.fused.spans import label_tensors
from landmark.ops.scoring import Scoring

_ALL = ("sinks", "key_mask", "document_ids")
SHORT = Case(7, 37, 30, groups=2, dim=24, extras=_ALL, options={"phase": 2, "softcap": 3.0})
LONG = Case(130, 150, 20, groups=2, dim=24, extras=_ALL, options={"phase": 2, "softcap": 3.0})
# The last tile of queries has nothing in common with the first block; the others have.
PARTED = Case(130, 200, 60, options={"document_ids": (torch.arange(200, device=DEVICE) >= 180)[None].long()})


def surrounded(x):
    """The same numbers as a view into a larger tensor that is NaN elsewhere."""
    batch, heads, rows, dim = x.shape
    around = torch.full((batch, heads, rows + 40, dim + 8), torch.nan, device=x.device, dtype=x.dtype)
    around[:, :, 20 : 20 + rows, :dim] = x.detach()
    return around[:, :, 20 : 20 + rows, :dim].requires_grad_()


@pytest.mark.parametrize("case", [SHORT, LONG, PARTED], ids=["short", "long", "parted"])
def test_reads_nothing_but_its_inputs_and_writes_all_of_its_results(case):
    inputs, options, upstream = case.draw(torch.float32)
    expected = results(fused, inputs, options, upstream)
    in_nan = [*(surrounded(x) for x in inputs[:3]), *inputs[3:]]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.zeros(1).new_empty(5).isnan().all()
        found = results(fused, in_nan, options, surrounded(upstream).detach())
    finally:
        torch.use_deterministic_algorithms(False)
    # A GPU's program for rows that lie apart sums the products of outputs and their gradients in another order.
    order = {"atol": 2e-6, "rtol": 0} if DEVICE == "cuda" else {"atol": 0, "rtol": 0}
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **order)


def test_values_of_landmarks_are_not_read():
    inputs = [torch.randn(1, 1, 20, 16, device=DEVICE).requires_grad_() for _ in range(3)]
    expected = results(fused, inputs, {"block_size": 3}, torch.ones_like(inputs[0]))
    spoilt = inputs[2].detach().clone()
    spoilt[:, :, 3::4] = torch.nan
    found = results(fused, [*inputs[:2], spoilt.requires_grad_()], {"block_size": 3}, torch.ones_like(inputs[0]))
    assert all(map(torch.equal, found, expected))
    assert found[3][:, :, 3::4].eq(0).all()


@pytest.mark.parametrize("case", [SHORT, LONG], ids=["short", "long"])
def test_ten_runs_are_the_same_to_the_bit(case):
    inputs, options, upstream = case.draw(torch.float32)

    def run():
        torch.manual_seed(3)
        return results(fused, inputs, {**options, "dropout": 0.2}, upstream)

    first = run()
    for _ in range(9 if DEVICE == "cuda" else 1):  # the interpreter has one order of events
        assert all(map(torch.equal, first, run()))


@pytest.mark.parametrize(
    "case",
    [Case(7, 40, 33, groups=2, dim=40, options={"phase": 3}), Case(130, 150, 20, dim=150)],
    ids=["short", "long"],
)
def test_dropout_drops_the_same_weights_in_forward_and_backward(case):
    inputs, options, upstream = case.draw(torch.float32)
    units = torch.eye(case.dim, device=DEVICE)[: case.keys].expand_as(inputs[2])

    def dropped(query, key, value, **options):
        torch.manual_seed(5)
        return fused(query, key, value, dropout=0.4, **options)

    with torch.no_grad():
        weights = dropped(*inputs[:2], units, **options)[..., : case.keys]
        undropped = fused(*inputs[:2], units, **options)[..., : case.keys]
    factors = torch.where(undropped > 0, weights / undropped, 0.0)
    kept = factors[undropped > 0] > 0
    torch.testing.assert_close(factors[undropped > 0][kept], torch.full_like(factors[undropped > 0][kept], 1 / 0.6))
    deviation = (0.4 * 0.6 / kept.numel()) ** 0.5
    assert abs(kept.float().mean().item() - 0.6) < 4 * deviation

    def explicit(query, key, value, **options):
        value = value.repeat_interleave(case.groups, dim=1)
        return (dense_weights(query, key, **options) * factors) @ value

    found = results(dropped, inputs, options, upstream)
    for x, expected in zip(found, results(explicit, inputs, options, upstream), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_dropout_differs_between_calls_heads_and_rows():
    inputs = [torch.zeros(2, 2, 16, 16, device=DEVICE), torch.zeros(2, 2, 16, 16, device=DEVICE)]
    units = torch.eye(16, device=DEVICE).expand(2, 2, 16, 16)
    first, second = (fused(*inputs, units, block_size=20, dropout=0.5) for _ in range(2))
    assert not torch.equal(first, second)
    last_rows = first[:, :, -1].flatten(0, 1).gt(0)
    assert len(last_rows.unique(dim=0)) == 4


@pytest.mark.parametrize("dynamic", [False, True])
def test_under_compile(dynamic):
    inputs, options, upstream = SHORT.draw(torch.float32)
    attention = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    found = results(attention, inputs, options, upstream)
    assert all(map(torch.equal, found, results(fused, inputs, options, upstream)))


def test_under_checkpointing():
    inputs, options, upstream = SHORT.draw(torch.float32)
    options["dropout"] = 0.3

    def again(*inputs, **options):
        return checkpoint(fused, *inputs, use_reentrant=False, **options)

    torch.manual_seed(1)
    expected = results(fused, inputs, options, upstream)
    torch.manual_seed(1)
    assert all(map(torch.equal, results(again, inputs, options, upstream), expected))


def test_as_an_operator():
    (query, key, value, sinks), options, _ = SHORT.draw(torch.float32)
    labels, ranges = label_tensors(options["key_mask"], options["document_ids"], key, 7, 2)
    seed, first = torch.tensor(7, device=DEVICE), torch.tensor([7], device=DEVICE)
    transposed = query.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for tensors in (
        (query, key, value, sinks, labels, ranges, seed, first),
        (transposed, key, value, *[None] * 4, first),
    ):
        torch.library.opcheck(forward_op, (*tensors, 7, 2, 0.2, None, 0.1 if tensors[6] is not None else 0.0))


def test_transposed_inputs_give_the_same():
    inputs = [torch.randn(1, 20, 2, 16, device=DEVICE).transpose(1, 2).requires_grad_() for _ in range(3)]
    copies = [x.detach().contiguous().requires_grad_() for x in inputs]
    sideways = [x.detach().mT.contiguous().mT.requires_grad_() for x in inputs]
    expected, *others = (
        results(fused, x, {"block_size": 3}, torch.ones(1, 2, 20, 16, device=DEVICE))
        for x in (copies, inputs, sideways)
    )
    for found in others:
        assert all(map(torch.equal, found, expected))


def test_autocast_does_not_lower_the_precision():
    inputs = [torch.randn(1, 1, 20, 16, device=DEVICE).requires_grad_() for _ in range(3)]
    expected = results(fused, inputs, {"block_size": 3}, torch.ones_like(inputs[0]))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = results(fused, inputs, {"block_size": 3}, torch.ones_like(inputs[0]))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("block_size", [3, 130])
def test_reading_places_each_rows_queries_among_its_keys(block_size):
    queries, lengths, width = 6, (9, 17), 20
    query, key, value = (torch.randn(2, heads, rows, 16) for heads, rows in ((4, queries), (2, width), (2, width)))
    sinks = torch.randn(4)
    query, key, value, sinks = (x.to(DEVICE) for x in (query, key, value, sinks))
    first = torch.tensor([length - queries for length in lengths], device=DEVICE)
    options = {"block_size": block_size, "scoring": Scoring(0.7, 5.0, sinks)}
    out, lse = fused_forward(query, key, value, first_query=first, **options)
    places = first[:, None] + torch.arange(queries, device=DEVICE)
    expected, expected_lse = blockwise_attention(query, key, value, query_positions=places, **options)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)
    for row, length in enumerate(lengths):
        key[row, :, length:] = torch.nan
        value[row, :, length:] = torch.nan
    key, value = key.nan_to_num(1e4), value.nan_to_num(1e4)
    assert torch.equal(fused_forward(query, key, value, first_query=first, **options)[0], out)


def test_reading_with_queries_beyond_the_keys():
    query, key, value = (torch.randn(2, 1, rows, 16, device=DEVICE) for rows in (20, 10, 10))
    first = torch.tensor([8, 15], device=DEVICE)
    out, lse = fused_forward(query, key, value, block_size=3, first_query=first, scoring=Scoring(1.0))
    assert out.isfinite().all()
    assert lse[0, :, :2].isfinite().all()
    exact = landmark_attention(query[:1, :, :2], key[:1], value[:1], block_size=3, scale=1.0, backend="reference")
    torch.testing.assert_close(out[:1, :, :2], exact)


def test_lse_of_reading_has_no_gradient():
    x = torch.randn(1, 1, 8, 16, device=DEVICE, requires_grad=True)
    first = torch.zeros(1, dtype=torch.long, device=DEVICE)
    out, lse = fused_forward(x, x, x, block_size=3, first_query=first, scoring=Scoring(1.0))
    assert out.requires_grad
    assert not lse.requires_grad


@pytest.mark.parametrize(
    ("dtype", "dim", "message"),
    [
        (torch.float64, 16, "reads float32.* not torch.float64; use backend='blockwise'"),
        (torch.float32, 8, "serves head_dim from 16 on.* not 8; use backend='blockwise'"),
        (torch.float32, 257, "serves head_dim up to 256, not 257; use backend='blockwise'"),
    ],
)
def test_refuses_what_it_cannot_serve(dtype, dim, message):
    x = torch.randn(1, 1, 4, dim, dtype=dtype, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        fused(x, x, x, block_size=3)


def test_refuses_devices_it_cannot_serve(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = torch.randn(1, 1, 4, 16)
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU of .* not cpu; use backend='blockwise'"):
        fused(x, x, x, block_size=3)


def test_refuses_without_triton(monkeypatch):
    monkeypatch.setattr(triton_support, "_INSTALLED", False)
    x = torch.randn(1, 1, 4, 16)
    with pytest.raises(ValueError, match=r"needs the package triton, which is .*; use backend='blockwise'"):
        fused(x, x, x, block_size=3)


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU auto is fused")
def test_auto_is_blockwise_without_a_gpu():
    x = torch.randn(1, 1, 20, 16)
    expected = landmark_attention(x, x, x, block_size=3, backend="blockwise")
    assert torch.equal(landmark_attention(x, x, x, block_size=3), expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="without a GPU auto is blockwise")
def test_auto_is_fused_on_a_gpu_where_it_can_be():
    x = torch.randn(1, 1, 20, 16, device=DEVICE)
    assert torch.equal(landmark_attention(x, x, x, block_size=3), fused(x, x, x, block_size=3))
    narrow = x[..., :8]
    expected = landmark_attention(narrow, narrow, narrow, block_size=3, backend="blockwise")
    assert torch.equal(landmark_attention(narrow, narrow, narrow, block_size=3), expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter's memory is the host's")
def test_memory_is_linear_in_length():
    def peak(length):
        inputs = [torch.randn(1, 4, length, 64, device=DEVICE, requires_grad=True) for _ in range(3)]
        for _ in range(2):  # the first run tunes
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            results(fused, inputs, {"block_size": 63}, torch.ones_like(inputs[0]))
        return torch.cuda.max_memory_allocated() - before

    assert peak(16384) < 2.2 * peak(8192)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter is slow")
def test_offsets_beyond_32_bits():
    inputs = [torch.randn(1, 1, 2**23 + 64, 256, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)]
    query = torch.randn(1, 1, 70, 256, device=DEVICE, dtype=torch.bfloat16)
    mask = torch.zeros(1, inputs[0].shape[2], dtype=torch.bool, device=DEVICE)
    mask[:, -200:] = True
    found = fused(query, *inputs, block_size=63, key_mask=mask)
    short = [x[:, :, -256:] for x in inputs]
    torch.testing.assert_close(
        found, dense(query, *short, block_size=63, key_mask=mask[:, -256:]), rtol=0.02, atol=0.02
    )
