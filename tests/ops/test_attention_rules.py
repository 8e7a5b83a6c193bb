"""Cases small enough to work out by hand, and the rules that hold for any backend."""

import math

import pytest
import torch

from landmark.ops.attention import landmark_attention

BACKENDS = ["reference", "blockwise"]


def attend(scores, values, **options):
    """One query at the last position, of head_dim 1, so that `scores` are its scores against every key."""
    query = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    key = torch.tensor(scores, dtype=torch.float64).view(1, 1, -1, 1)
    value = torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)
    return landmark_attention(query, key, value, scale=1.0, **options).item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_shares_its_weight_inside_the_block(backend):
    # Block (0, 0, landmark log 3), then the query itself with score 0: gate 3/4, own weight 1/4.
    out = attend([0.0, 0.0, math.log(3), 0.0], [4.0, 8.0, 1e6, 100.0], block_size=2, backend=backend)
    assert out == pytest.approx(3 / 8 * 4 + 3 / 8 * 8 + 1 / 4 * 100, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_inside_a_block_do_not_open_it(backend):
    # The first block's tokens score high, yet only its landmark decides how much of them is read.
    out = attend([500.0, 500.0, 0.0, 0.0], [2.0, 4.0, 1e6, 10.0], block_size=2, backend=backend)
    assert out == pytest.approx((3.0 + 10.0) / 2, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_very_different_scores_keep_their_precision(backend):
    out = attend(
        [-900.0, -900.0, 0.0, 900.0, 900.0, 0.0, 0.0],
        [1.0, 3.0, 0, 5.0, 7.0, 0, 0.0],
        block_size=2,
        backend=backend,
    )
    assert out == pytest.approx((2.0 + 6.0 + 0.0) / 3, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_landmark_row_reads_its_block_but_not_itself(backend):
    out = attend([0.0, math.log(3), 9.0], [4.0, 8.0, 1e6], block_size=2, backend=backend)
    assert out == pytest.approx(1 / 4 * 4 + 3 / 4 * 8, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_landmark_of_an_empty_block_keeps_its_gate(backend):
    # phase = block_size: position 0 is a landmark of nothing; half of the weight is lost.
    out = attend([0.0, 0.0], [1e6, 6.0], block_size=2, phase=2, backend=backend)
    assert out == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_block_with_a_real_landmark_keeps_its_gate(backend):
    mask = torch.tensor([[False, False, True, True]])
    out = attend([0.0] * 4, [1.0, 1.0, 1.0, 6.0], block_size=2, key_mask=mask, backend=backend)
    assert out == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_documents_and_their_blocks_are_hidden(backend):
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    values = [1e6, 1e6, 1e6, 1e6, 4.0, 1e6, 8.0]
    out = attend([0.0] * 7, values, block_size=2, document_ids=documents, backend=backend)
    # Landmark 5 opens block 1, of which only token 4 belongs to the query's document.
    assert out == pytest.approx((4.0 + 8.0) / 2, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sink_takes_weight_and_gives_nothing(backend):
    sinks = torch.tensor([math.log(3)], dtype=torch.float64)
    out = attend([0.0], [8.0], block_size=2, sinks=sinks, backend=backend)
    assert out == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_softcap_comes_before_the_gates(backend):
    high = math.tanh(10.0 / 2.0) * 2.0
    out = attend([0.0, 0.0, 10.0, 0.0], [1.0, 1.0, 1e6, 0.0], block_size=2, softcap=2.0, backend=backend)
    assert out == pytest.approx(math.exp(high) / (math.exp(high) + 1), abs=1e-12)


def test_two_landmarks_in_a_row():
    is_landmark = torch.tensor([False, True, True, False])
    out = attend([0.0] * 4, [3.0, 1e6, 1e6, 9.0], is_landmark=is_landmark)
    assert out == pytest.approx((3.0 + 0.0 + 9.0) / 3, abs=1e-12)


def test_rows_of_a_batch_may_place_landmarks_differently():
    query, key, value = (torch.randn(2, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    places = torch.rand(2, 9) < 0.3
    both = landmark_attention(query, key, value, is_landmark=places)
    for row in range(2):
        one = landmark_attention(*(x[row : row + 1] for x in (query, key, value)), is_landmark=places[row])
        torch.testing.assert_close(both[row : row + 1], one)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_see_nothing_are_zero_with_zero_gradients(backend, with_sinks):
    inputs = [torch.randn(2, 2, 11, 4).requires_grad_() for _ in range(3)]
    sinks = torch.randn(2, requires_grad=True) if with_sinks else None
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0] = False  # a row of nothing but padding
    mask[1, :5] = False  # left padding beyond the first block
    out = landmark_attention(*inputs, block_size=3, key_mask=mask, sinks=sinks, backend=backend)
    assert out[0].eq(0).all()
    assert out[1, :, :5].eq(0).all()
    wanted = inputs if sinks is None else [*inputs, sinks]
    grads = torch.autograd.grad(out.square().sum() + out.sum(), wanted)
    assert all(grad.isfinite().all() for grad in grads)
    assert all(grad[0].eq(0).all() and grad[1, :, :5].eq(0).all() for grad in grads[:3])
    assert grads[0][1, :, 6:].ne(0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean_and_repeats_with_the_seed(backend):
    inputs = [torch.randn(1, 2, 30, 4, dtype=torch.float64) for _ in range(3)]

    def run(dropout):
        return landmark_attention(*inputs, block_size=3, dropout=dropout, backend=backend)

    torch.manual_seed(3)
    first = run(0.3)
    assert not torch.equal(first, run(0.3))
    torch.manual_seed(3)
    assert torch.equal(first, run(0.3))
    mean = torch.stack([run(0.3) for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, run(0.0), rtol=0, atol=0.25)
    assert (mean - run(0.0)).mean().abs() < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend):
    inputs = [torch.randn(1, 2, 20, 8).requires_grad_() for _ in range(3)]
    expected = landmark_attention(*inputs, block_size=3, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = landmark_attention(*inputs, block_size=3, backend=backend)
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(map(torch.equal, grads, torch.autograd.grad(expected.sum(), inputs)))
