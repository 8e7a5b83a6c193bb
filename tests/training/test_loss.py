import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from landmark.training import loss as loss_module
from landmark.training.loss import distillation_loss, weighted_cross_entropy


def problem(rows: int, length: int, vocabulary: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, 8, generator=generator)
    head = torch.randn(8, vocabulary, generator=generator)
    labels = torch.randint(vocabulary, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.2] = -100
    weights = torch.rand(rows, length, generator=generator) * 5
    weights[torch.rand(rows, length, generator=generator) < 0.2] = 0
    return hidden, head, labels, weights


def plain(logits, labels, weights):
    targets = labels[:, 1:].flatten()
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="none", ignore_index=-100)
    weights = weights[:, 1:].flatten() * (targets != -100)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-30), losses * (weights > 0)


@given(rows=st.integers(1, 3), length=st.integers(2, 20), vocabulary=st.integers(2, 50), seed=st.integers(0, 99))
def test_loss_and_gradients_are_those_of_plain_cross_entropy(rows, length, vocabulary, seed):
    hidden, head, labels, weights = problem(rows, length, vocabulary, seed)
    gradients = []
    for function in (plain, weighted_cross_entropy):
        inputs = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        loss, token_losses = function(inputs[0] @ inputs[1], labels, weights)
        (3 * loss).backward()
        gradients.append([loss.detach(), *(tensor.grad for tensor in inputs), token_losses.detach()])
    expected, found = gradients
    found[3] = found[3][:, 1:].flatten()
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_pieces_of_rows_make_no_difference(monkeypatch):
    hidden, head, labels, weights = problem(3, 10, 20)
    results = []
    for rows in (1000, 7):
        monkeypatch.setattr(loss_module, "ROWS", rows)
        leaf = head.clone().requires_grad_()
        loss, _ = weighted_cross_entropy(hidden @ leaf, labels, weights)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*results)


def test_half_precision_logits_get_a_gradient_of_their_own_kind():
    hidden, head, labels, weights = problem(2, 10, 20)
    leaf = head.bfloat16().requires_grad_()
    loss, _ = weighted_cross_entropy(hidden.bfloat16() @ leaf, labels, weights)
    loss.backward()
    reference = leaf.detach().float().requires_grad_()
    plain(hidden.bfloat16().float() @ reference, labels, weights)[0].backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(leaf.grad.float(), reference.grad, atol=2e-2, rtol=5e-2)


def test_without_a_gradient_the_logits_survive():
    hidden, head, labels, weights = problem(2, 10, 20)
    logits = hidden @ head
    before = logits.clone()
    weighted_cross_entropy(logits, labels, weights)
    assert torch.equal(logits, before)


def test_nothing_to_learn_is_no_loss_and_no_gradient():
    hidden, head, labels, weights = problem(1, 6, 20)
    leaf = head.requires_grad_()
    loss, _ = weighted_cross_entropy(hidden @ leaf, torch.full_like(labels, -100), weights)
    loss.backward()
    assert loss.item() == 0
    assert (leaf.grad == 0).all()


def test_overwriting_logits_that_another_operation_needs_is_an_error_not_a_wrong_gradient():
    hidden, head, labels, weights = problem(1, 6, 20)
    logits = (hidden @ head.requires_grad_()).tanh()  # tanh keeps its result for the backward pass
    loss, _ = weighted_cross_entropy(logits, labels, weights)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def divergence(logits, teacher, labels, weights, answers):
    """What `distillation_loss` computes, with the tensors it does without."""
    logits = logits[:, :-1, : teacher.shape[-1]].flatten(0, 1)
    teacher = teacher[:, :-1].flatten(0, 1).log_softmax(-1)
    targets = labels[:, 1:].flatten()
    losses = F.kl_div(logits.log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1)
    hard = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    losses = torch.where(answers[:, 1:].flatten(), hard, losses)
    weights = weights[:, 1:].flatten() * (targets != -100)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-30), losses * (weights > 0)


@given(rows=st.integers(1, 3), length=st.integers(2, 20), more=st.integers(0, 1), seed=st.integers(0, 99))
def test_distillation_and_its_gradients_are_those_of_plain_losses(rows, length, more, seed):
    hidden, head, labels, weights = problem(rows, length, 21, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    teacher = 2 * torch.randn(rows, length, 21 - more, generator=generator)
    labels = labels.clamp(max=20 - more)
    answers = torch.rand(rows, length, generator=generator) < 0.3
    gradients = []
    for function in (divergence, distillation_loss):
        inputs = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        loss, token_losses = function(inputs[0] @ inputs[1], teacher, labels, weights, answers)
        (3 * loss).backward()
        gradients.append([loss.detach(), *(tensor.grad for tensor in inputs), token_losses.detach()])
    expected, found = gradients
    found[3] = found[3][:, 1:].flatten()
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_pieces_make_no_difference_to_a_distillation_and_the_teacher_survives(monkeypatch):
    hidden, head, labels, weights = problem(3, 10, 20)
    teacher = torch.randn(3, 10, 20, generator=torch.Generator().manual_seed(5))
    before, answers = teacher.clone(), labels % 3 == 0
    results = []
    for numbers in (1 << 20, 70):
        monkeypatch.setattr(loss_module, "NUMBERS", numbers)
        leaf = head.clone().requires_grad_()
        loss, _ = distillation_loss(hidden @ leaf, teacher, labels, weights, answers)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*results)
    assert torch.equal(teacher, before)


def test_a_column_that_no_token_has_takes_no_part_in_a_distillation():
    hidden, head, labels, weights = problem(2, 10, 20)
    logits = hidden @ head
    lowest = torch.finfo(torch.float32).min
    masked = torch.cat((logits, torch.full_like(logits[..., :1], lowest)), -1)
    answers = torch.zeros_like(labels, dtype=torch.bool)
    for teacher in (logits, masked):
        leaf = masked.clone().requires_grad_()
        loss, _ = distillation_loss(leaf.clone(), teacher, labels, weights, answers)
        loss.backward()
        assert abs(loss.item()) < 1e-6
        assert leaf.grad.abs().max() < 1e-6
    with pytest.raises(ValueError, match="must predict the same tokens"):
        distillation_loss(logits, masked, labels, weights, answers)
