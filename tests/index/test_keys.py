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


@pytest.mark.usefixtures("codes_at_once")
@pytest.mark.parametrize("recall", [None, 1.0, 0.9])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("taint", [0.0, torch.nan])
def test_keys_that_are_taken_over_are_found_as_those_that_are_copied(form, recall, taint):
    torch.manual_seed(0)
    keys, query = torch.randn(HEADS, 900, 32), torch.randn(1, HEADS * GROUP, 9, 32)
    keys[1, 5] += taint
    room = torch.zeros(HEADS, 400, 32)
    room[:, :300] = keys[:, :300]
    found = []
    for way in ("append", "adopt"):
        index = ExactIndex(1, keys=form) if recall is None else HierarchicalIndex(1, keys=form, recall=recall)
        if way == "append":
            index.append(0, keys[:, :300])
        else:
            index.adopt(room, 300)
        found.append([index.search(query, 3, [300])])
        for start, stop in ((300, 390), (390, 900)):  # within the room, and beyond it
            index.append(0, keys[:, start:stop])
            found[-1].append((*index.search(query, 3, [stop]), index.scores(query, [stop])))
    assert all(torch.equal(x, y) for pair in zip(*found, strict=True) for x, y in zip(*pair, strict=True))
    kept = form == "float32" and taint == 0.0
    assert torch.equal(room[:, 300:390], keys[:, 300:390]) == kept


def test_codes_of_a_few_more_keys_fit_the_arrays_that_were_resumed():
    keys, query = torch.randn(HEADS, 3000, 32) * torch.logspace(0, -3, 32), torch.randn(1, HEADS * GROUP, 9, 32)
    before, after = HierarchicalIndex(1), HierarchicalIndex(1)
    for some in keys[:, :2816].split(2000, dim=1):  # so that the buffer has room, as one that grew has
        before.append(0, some)
    before.search(query, 3, [2816])
    tensors = before.tensors()
    after.append(0, keys)
    after.resume(tensors)
    (codes,) = (tensor for name, tensor in tensors.items() if name.endswith("codes"))
    assert after.keys_scored is None
    after.search(query, 3, [3000])
    assert after._codes._arrays.codes.ctypes.data == codes.data_ptr()
