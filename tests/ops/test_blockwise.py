"""Blockwise attention against the dense reference: outputs and every gradient, over ragged shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from landmark.ops import blockwise as tiles_module
from landmark.ops.attention import landmark_attention
from landmark.ops.blockwise import blockwise_attention
from landmark.ops.scoring import Scoring


@st.composite
def cases(draw):
    block_size = draw(st.integers(1, 9))
    stride = block_size + 1
    keys = draw(
        st.one_of(
            st.sampled_from([1, block_size, stride, stride + 1, 3 * stride, 3 * stride - 1]),
            st.integers(1, 60),
        )
    )
    kv_heads, groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    batch = draw(st.integers(1, 2))
    options = {"block_size": block_size, "phase": draw(st.integers(0, block_size))}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    queries = draw(st.one_of(st.just(keys), st.integers(1, keys)))
    inputs = [
        normal(batch, kv_heads * groups, queries, 5),
        *(normal(batch, kv_heads, keys, 5) for _ in range(2)),
    ]
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 3.0]))
    if draw(st.booleans()):
        options["sinks"] = normal(kv_heads * groups)
    if draw(st.booleans()):
        options["key_mask"] = torch.rand(batch, keys, generator=generator) < draw(st.sampled_from([0.3, 0.9]))
    if draw(st.booleans()):
        jumps = torch.rand(batch, keys, generator=generator) < draw(st.sampled_from([0.1, 0.5]))
        options["document_ids"] = jumps.long().cumsum(-1)
    return inputs, options


def outputs_and_gradients(inputs, options, backend):
    out = landmark_attention(*inputs, **options, backend=backend)
    sinks = options.get("sinks")
    wanted = inputs if sinks is None else [*inputs, sinks]
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, wanted, upstream)]


@pytest.mark.parametrize("small_tiles", [False, True])
@settings(max_examples=150)
@given(cases())
def test_equals_the_reference(small_tiles, case):
    with pytest.MonkeyPatch.context() as patch:
        if small_tiles:  # several blocks to a tile, blocks split over tiles, several chunks of a few blocks
            patch.setattr(tiles_module, "_TILE_QUERIES", 6)
            patch.setattr(tiles_module, "_TILE_QUERIES_LIMIT", 7)
            patch.setattr(tiles_module, "_BUFFER_ELEMENTS", 300)
        found = outputs_and_gradients(*case, "blockwise")
    for x, expected in zip(found, outputs_and_gradients(*case, "reference"), strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_gradcheck(backend):
    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    mask = torch.rand(2, 14) < 0.8
    documents = (torch.arange(14) >= torch.tensor([[6], [20]])).long()

    def attention(query, key, value, sinks):
        return landmark_attention(
            query,
            key,
            value,
            sinks=sinks,
            block_size=3,
            phase=2,
            softcap=2.0,
            key_mask=mask,
            document_ids=documents,
            backend=backend,
        )

    inputs = (random(2, 2, 9, 3), random(2, 1, 14, 3), random(2, 1, 14, 3), random(2))
    assert torch.autograd.gradcheck(attention, inputs)


def test_gradcheck_with_dropout_drops_the_same_weights_in_backward():
    def attention(query, key, value):
        torch.manual_seed(5)
        return landmark_attention(query, key, value, block_size=3, dropout=0.4, backend="blockwise")

    inputs = [torch.randn(1, 2, 14, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(attention, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [100, 257])
def test_half_precision_errs_no_more_than_twice_the_reference(dtype, length):
    inputs = [torch.randn(1, heads, length, 32).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    exact = outputs_and_gradients(
        [x.detach().double().requires_grad_() for x in inputs], {"block_size": 15}, "reference"
    )
    dense = outputs_and_gradients(inputs, {"block_size": 15}, "reference")
    found = outputs_and_gradients(inputs, {"block_size": 15}, "blockwise")
    for x, plain, truth in zip(found, dense, exact, strict=True):
        assert x.dtype == dtype
        few_ulp = 2 * torch.finfo(dtype).eps * truth.abs().max()
        assert (x - truth).abs().max() <= 2 * (plain - truth).abs().max() + few_ulp


class _Largest(TorchDispatchMode):
    """Remembers the most elements any result of an operation owned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("masked", [False, True])
def test_never_builds_a_query_by_key_matrix(masked):
    def largest(length):
        inputs = [torch.randn(1, heads, length, 8, requires_grad=True) for heads in (4, 2, 2)]
        options = {"block_size": 63}
        if masked:
            options["document_ids"] = torch.arange(length)[None] // 500
            options["key_mask"] = torch.rand(1, length) < 0.9
        with _Largest() as seen:
            out = landmark_attention(*inputs, **options, backend="blockwise")
            torch.autograd.grad(out.sum(), inputs)
        return seen.elements

    assert largest(4096) <= 1.05 * tiles_module._BUFFER_ELEMENTS  # one head's matrix has 16 million
    assert largest(512) <= 4 * 64 * 512  # short inputs do not pay for the buffer of long ones


def test_positions_may_differ_by_row():
    stride, key_lengths, queries = 4, (9, 17), 6
    query, key, value = torch.randn(2, 4, queries, 3), torch.randn(2, 2, 17, 3), torch.randn(2, 2, 17, 3)
    positions = torch.stack([torch.arange(n - queries, n) for n in key_lengths])
    out, lse = blockwise_attention(
        query, key, value, block_size=stride - 1, query_positions=positions, scoring=Scoring(0.7)
    )
    for row, length in enumerate(key_lengths):
        q, k, v = query[row : row + 1], key[row : row + 1, :, :length], value[row : row + 1, :, :length]
        alone = landmark_attention(q, k, v, block_size=stride - 1, scale=0.7, backend="reference")
        torch.testing.assert_close(out[row : row + 1], alone)
        one = blockwise_attention(q, k, v, block_size=stride - 1, query_positions=positions[row], scoring=Scoring(0.7))
        torch.testing.assert_close(lse[row : row + 1], one[1])


def test_lse_counts_local_tokens_gates_and_sink():
    key = torch.tensor([5.0, 6.0, 0.3, 0.2, 0.1]).view(1, 1, 5, 1)
    query, sinks = torch.ones(1, 1, 1, 1), torch.tensor([0.7])
    options = {"block_size": 2, "query_positions": torch.tensor([4]), "scoring": Scoring(1.0, None, sinks)}
    _, lse = blockwise_attention(query.requires_grad_(), key, key, **options)
    torch.testing.assert_close(lse, torch.tensor([0.3, 0.2, 0.1, 0.7]).logsumexp(0).view(1, 1, 1))


def test_gradcheck_of_both_outputs():
    def attention(query, key, value, sinks):
        positions = torch.arange(5, 14)
        scoring = Scoring(0.7, 2.0, sinks)
        return blockwise_attention(query, key, value, block_size=3, query_positions=positions, scoring=scoring)

    shapes = (1, 2, 9, 3), (1, 1, 14, 3), (1, 1, 14, 3), (2,)
    assert torch.autograd.gradcheck(attention, [torch.randn(*s).double().requires_grad_() for s in shapes])


def test_lse_of_a_row_that_sees_nothing_is_minus_infinity():
    x = torch.randn(1, 1, 5, 2)
    mask = torch.zeros(1, 5, dtype=torch.bool)
    out, lse = blockwise_attention(
        x, x, x, block_size=2, query_positions=torch.arange(5), scoring=Scoring(1.0), key_mask=mask
    )
    assert lse.eq(-torch.inf).all()
    assert out.eq(0).all()


def test_transposed_inputs_give_the_same():
    inputs = [torch.randn(2, 20, 4, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    copies = [x.detach().contiguous().requires_grad_() for x in inputs]
    results = (outputs_and_gradients(x, {"block_size": 3}, "blockwise") for x in (inputs, copies))
    for x, expected in zip(*results, strict=True):
        torch.testing.assert_close(x, expected)


def test_backward_under_autocast_stays_exact():
    inputs = [torch.randn(1, 2, 20, 8).requires_grad_() for _ in range(3)]
    expected = outputs_and_gradients(inputs, {"block_size": 3}, "blockwise")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outputs_and_gradients(inputs, {"block_size": 3}, "blockwise")
    assert all(map(torch.equal, found, expected))


def test_query_positions_outside_the_keys():
    x = torch.randn(1, 1, 4, 2)
    with pytest.raises(ValueError, match=r"query_positions run from 1 to 4; with 4 keys .* 0\.\.3"):
        blockwise_attention(x, x, x, block_size=2, query_positions=torch.arange(1, 5), scoring=Scoring(1.0))


def test_documents_of_queries_and_keys_come_together():
    x = torch.randn(1, 1, 4, 2)
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="must be given together"):
        blockwise_attention(
            x, x, x, block_size=2, query_positions=torch.arange(4), scoring=Scoring(1.0), document_ids=ids
        )
