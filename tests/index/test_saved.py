"""State of an index that anyone may have saved: refused where it does not fit the keys that it is resumed over."""

import pytest
import torch

from landmark.index.hierarchical import HierarchicalIndex


def keys_and_queries():
    random = torch.Generator().manual_seed(0)
    return torch.randn(2, 1500, 8, generator=random), torch.randn(1, 4, 3, 8, generator=random)


def filled(recall, keys):
    index = HierarchicalIndex(1, recall=recall)
    index.append(0, keys)
    return index


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_no_array_of_another_shape_dtype_or_content_is_read(recall, monkeypatch):
    monkeypatch.setattr("landmark.index.hierarchical._CODES_FROM", 1)
    monkeypatch.setattr("landmark.index.hierarchical._MAX_SCORED_SHARE", 2.0)
    keys, query = keys_and_queries()
    index = filled(recall, keys)
    expected = index.search(query, 2, [1500])
    kept = {name: tensor.clone() for name, tensor in index.tensors().items()}
    again = filled(recall, keys)
    again.resume({name: tensor.clone() for name, tensor in kept.items()})
    assert all(map(torch.equal, again.search(query, 2, [1500]), expected))
    for name, tensor in kept.items():
        for other in (tensor[..., :-1], tensor.flatten()[:1], tensor.to(torch.complex64), None):
            if other is not None and (other.shape, other.dtype) == (tensor.shape, tensor.dtype):
                continue
            if name.endswith("watch") and other is None:
                continue  # contexts of earlier releases have none
            changed = {**kept, name: other} if other is not None else {n: x for n, x in kept.items() if n != name}
            with pytest.raises(ValueError, match="the saved state of the index"):
                filled(recall, keys).resume(changed)
        if name.endswith(("counts", "first")):
            for number in (-(10**6), 10**6):
                with pytest.raises(ValueError, match="the saved state of the index"):
                    filled(recall, keys).resume({**kept, name: tensor + number})


def test_state_of_more_keys_or_heads_is_refused(monkeypatch):
    monkeypatch.setattr("landmark.index.hierarchical._CODES_FROM", 1)
    keys, query = keys_and_queries()
    for recall in (0.9, 1.0):
        index = filled(recall, keys)
        index.search(query, 2, [1500])
        for fewer in (keys[:, :1400], keys[:1], keys[..., :4]):
            with pytest.raises(ValueError, match="the saved state of the index"):
                filled(recall, fewer.contiguous()).resume(index.tensors())
