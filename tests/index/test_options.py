import pytest
import torch

from landmark.index.constant import ConstantIndex
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex
from landmark.index.options import IndexOptions, make_index

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize(
    ("options", "device", "kind"),
    [
        (IndexOptions(), CPU, HierarchicalIndex),
        (IndexOptions(), ELSEWHERE, ExactIndex),
        (IndexOptions("exact", "int8"), CPU, ExactIndex),
        (IndexOptions("hierarchical", "bfloat16", 0.9), CPU, HierarchicalIndex),
    ],
)
def test_options_choose_the_index(options, device, kind):
    assert type(make_index(options, 1, None, constant_keys=False, device=device)) is kind
    assert type(make_index(options, 1, None, constant_keys=True, device=device)) is ConstantIndex


@pytest.mark.parametrize("keys", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["auto", "exact", "hierarchical"])
def test_the_format_of_keys_reaches_the_index(kind, keys):
    index = make_index(IndexOptions(kind, keys), 1, None, constant_keys=False, device=CPU)
    index.append(0, torch.randn(1, 1, 8))
    assert index.nbytes == {"float32": 32, "bfloat16": 16, "int8": 12}[keys]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hnsw"}, "index kind is 'hnsw': choose from auto, exact"),
        ({"keys": "float16"}, "index keys is 'float16'"),
        ({"recall": 0.3, "kind": "hierarchical"}, "recall is 0.3"),
        ({"recall": 0.9}, "requires kind=\"hierarchical\", not 'auto'"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IndexOptions(**options)


def test_the_hierarchical_index_is_not_made_elsewhere():
    with pytest.raises(ValueError, match="works on a CPU, not on meta"):
        make_index(IndexOptions("hierarchical"), 1, None, constant_keys=False, device=ELSEWHERE)
