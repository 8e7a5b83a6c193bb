import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark.index.topk import _sorted, top_newest


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
    scores = torch.randint(values, (3, length)).double()
    scores[torch.rand(3, length) < 0.2] = -torch.inf
    numbers = torch.randperm(length)
    for found in (top_newest(scores, numbers[None], k), _sorted(scores, numbers[None], k)):
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
