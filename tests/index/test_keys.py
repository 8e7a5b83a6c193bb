"""What a search finds depends on queries and keys alone, to the last bit, not on what keeps the keys."""

import pytest
import torch

from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex

HEADS, GROUP = 2, 2


@pytest.mark.usefixtures("codes_at_once")
@pytest.mark.parametrize("dim", [8, 20, 64])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tile", [1, 64, 1024])
def test_one_index_codes_and_branches_find_the_same_bits(dim, form, tile, monkeypatch):
    for module in ("keys", "branch"):
        monkeypatch.setattr(f"landmark.index.{module}.TILE", tile)
    torch.manual_seed(0)
    # So nearly equal that another order of summing makes another key the best.
    keys = torch.randn(HEADS, 1, dim) * (1 + 1e-7 * torch.randn(HEADS, 301, dim))
    query = torch.randn(1, HEADS * GROUP, 19, dim)
    wanted = None
    for kind, left in ((ExactIndex, 301), (ExactIndex, 40), (ExactIndex, 258), (HierarchicalIndex, 301)):
        index = kind(1, keys=form)
        index.append(0, keys[:, :left])
        if left < 301:
            index = index.fork()
            index.append(0, keys[:, left:])
        scores, numbers = index.search(query, 3, [299])
        order = numbers.argsort(-1)
        found = scores.gather(-1, order), numbers.gather(-1, order), index.scores(query, [299])
        wanted = found if wanted is None else wanted
        assert all(map(torch.equal, found, wanted))
