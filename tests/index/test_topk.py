import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from landmark.index.topk import top_newest, top_packed


def best(scores: list[float], numbers: list[int], k: int) -> list[tuple[float, int]]:
    """The definition: highest score first, the newest among equals; as a sorted list."""
    ranked = sorted((-s, -n) for s, n in zip(scores, numbers, strict=True) if s != -torch.inf)
    return sorted((-s, -n) for s, n in ranked[:k])


def pairs(scores: torch.Tensor, numbers: torch.Tensor) -> list[tuple[float, int]]:
    found = zip(scores.tolist(), numbers.tolist(), strict=True)
    return sorted((s, n) for s, n in found if n >= 0)


@given(
    length=st.one_of(st.integers(1, 40), st.integers(1000, 1200)),
    k=st.integers(1, 6),
    values=st.integers(1, 400),
)
def test_top_newest_breaks_ties_by_age(length, k, values):
    scores = torch.randint(-values // 2, values // 2 + 1, (3, length)).double() / 8  # exact in float32
    scores[torch.rand(3, length) < 0.2] = -torch.inf
    numbers = torch.randperm(length)
    for found in (top_newest(scores, numbers[None], k), top_packed(scores, numbers[None], k)):
        for row in range(3):
            assert pairs(found[0][row], found[1][row]) == best(scores[row].tolist(), numbers.tolist(), k)
            assert (found[1][row] < 0).sum() == max(0, k - (scores[row] > -torch.inf).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_there_is_never_found_whatever_its_score(dtype):
    scores = torch.randn(2, 3, 40).to(dtype)
    numbers = torch.arange(40).repeat(2, 1)
    numbers[0, ::2], numbers[1] = -1, -1
    scores[numbers[:, None].expand_as(scores) < 0] = torch.inf
    values, found = top_newest(scores, numbers[:, None], 4)
    assert (found[0] % 2 == 1).all()
    assert (found[1] == -1).all()
    assert (values[1] == -torch.inf).all()


class HostReads(TorchDispatchMode):
    """Counts the numbers that the host reads from tensors, for which it would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_nothing_that_is_found():
    scores = torch.zeros(2, 3, 2000)  # all tie
    with HostReads() as reads:
        values, found = top_packed(scores, torch.arange(2000), 4)
    assert reads.count == 0
    assert (values == 0).all()
    assert torch.equal(found.sort(-1).values, torch.arange(1996, 2000).expand(2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_of_either_sign_come_back_as_they_are(dtype):
    scores = torch.tensor([[-0.0, 0.0, 1e-38, -1e-38, 3.5, -3.5, torch.inf, -torch.inf, torch.nan]]).to(dtype)
    values, found = top_packed(scores, torch.arange(9), 8)
    ranked = sorted(zip(values[0].tolist(), found[0].tolist(), strict=True), reverse=True)
    kept = scores[0, :7].tolist()
    assert ranked[:7] == sorted(zip(kept, range(7), strict=True), reverse=True)
    assert ranked[7] == (-torch.inf, -1)
