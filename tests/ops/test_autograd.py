"""A gradient is differentiated rightly or not at all: with `create_graph` no graph is cut without a word."""

import pytest
import torch

from landmark.ops.attention import landmark_attention
from landmark.ops.retrieved import Pages, retrieved_attention
from landmark.ops.rotary import Rotation
from landmark.ops.scoring import Scoring
from landmark.training.loss import weighted_cross_entropy


def _tensors(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_the_reference_can_be_differentiated_twice():
    inputs = _tensors((1, 2, 9, 4), (1, 1, 9, 4), (1, 1, 9, 4))
    mask = torch.rand(1, 9) < 0.7

    def attention(*x):
        return landmark_attention(*x, block_size=2, key_mask=mask, backend="reference")

    assert torch.autograd.gradgradcheck(attention, inputs)


@pytest.mark.parametrize("backend", ["blockwise", "fused"])
@pytest.mark.parametrize("which", range(4))
def test_other_backends_refuse(backend, which):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = (1, 2, 9, 16), (1, 1, 9, 16), (1, 1, 9, 16), (2,)
    inputs = [x.detach().to(device).requires_grad_() for x in _tensors(*shapes, dtype=torch.float32)]
    out = landmark_attention(*inputs[:3], sinks=inputs[3], block_size=3, backend=backend)
    # The upstream gradient of a sum needs no gradient itself.
    gradients = torch.autograd.grad(out.sum(), inputs, create_graph=True)
    assert all(x.requires_grad for x in gradients)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(gradients[which].square().sum(), inputs, allow_unused=True)


def test_what_does_not_pass_through_attention_may_be_differentiated_again():
    inputs = _tensors((1, 1, 9, 4), (1, 1, 9, 4), (1, 1, 9, 4))
    out = landmark_attention(*inputs, block_size=3, backend="blockwise").detach().requires_grad_()
    (gradient,) = torch.autograd.grad(out.pow(3).sum(), out, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), out)
    torch.testing.assert_close(second, 6 * out.detach())


def test_the_loss_refuses_and_gives_its_gradient_once():
    logits, labels = torch.randn(1, 5, 7), torch.randint(7, (1, 5))
    leaf = logits.clone().requires_grad_()
    loss, _ = weighted_cross_entropy(leaf * 1, labels, torch.ones(1, 5))
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="cross_entropy"):
        gradient.square().sum().backward()
    loss, _ = weighted_cross_entropy(leaf * 1, labels, torch.ones(1, 5))
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="again"):  # it lies in the logits, and was scaled there
        (2 * loss).backward()


@pytest.mark.parametrize("backend", ["auto", "gathered"])
def test_blocks_that_are_read_have_no_gradient(backend):
    query, keys, values = _tensors((1, 1, 2, 4), (1, 1, 3, 5, 4), (1, 1, 3, 5, 4))
    table = torch.ones(8, 4, dtype=torch.float64)
    pages = Pages(keys, values, torch.zeros(1, 1, 2, 1, dtype=torch.long))
    distance = torch.zeros(1, 1, 2, 1, dtype=torch.long)
    rotation = Rotation(table, 0 * table, "half")
    with pytest.raises(ValueError, match="without gradients"):
        retrieved_attention(query, pages, distance, rotation=rotation, scoring=Scoring(1.0), backend=backend)
    with torch.no_grad():
        retrieved_attention(query, pages, distance, rotation=rotation, scoring=Scoring(1.0), backend=backend)
