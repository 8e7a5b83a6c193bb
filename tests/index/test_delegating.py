"""`Delegating`: all else is done by what is inside, and copies are copies."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from landmark.index.delegating import Delegating
from landmark.index.exact import ExactIndex


@dataclass(frozen=True)
class Noted(Delegating):
    """Keeps the rows of what is appended."""

    inner: ExactIndex
    rows: list[int]

    def append(self, row: int, keys: Tensor) -> None:
        self.rows.append(row)
        self.inner.append(row, keys)


def test_what_it_does_not_define_is_done_inside():
    noted = Noted(ExactIndex(2), [])
    noted.append(1, torch.randn(1, 3, 4))
    assert noted.rows == [1]
    assert noted.numbers(torch.device("cpu")).tolist() == [[-1, -1, -1], [0, 1, 2]]
    with pytest.raises(AttributeError, match="other"):
        _ = noted.other


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda noted: pickle.loads(pickle.dumps(noted))])
def test_it_can_be_copied(copied):
    noted = Noted(ExactIndex(1), [])
    noted.append(0, torch.randn(1, 3, 4))
    other = copied(noted)
    assert other.rows == [0]
    assert torch.equal(other.keys(torch.tensor([[0, 2]])), noted.keys(torch.tensor([[0, 2]])))
