"""Options of the index of landmark keys, and the index for them."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from landmark.index.base import Index
from landmark.index.constant import ConstantIndex
from landmark.index.exact import ExactIndex
from landmark.index.hierarchical import HierarchicalIndex, check_recall
from landmark.index.keys import KeyFormat

IndexKind = Literal["auto", "exact", "hierarchical"]


@dataclass(frozen=True)
class IndexOptions:
    """How landmark keys are stored and searched.

    Args:
        kind: "exact" scores every key; "hierarchical" prunes keys by quantized codes, on a CPU only; "auto" is
            "hierarchical" on a CPU and "exact" elsewhere.
        keys: format in which keys are stored. "bfloat16" and "int8" round them; from then on the rounded key counts.
        recall: share of the `retrieve` best blocks to find, from 0.5 to 1. Below 1 the hierarchical index is an IVF
            index: about that share or more is found on average over some hundreds of queries of a head, also after
            text or queries change, once the change is detected (see docs/indexes.md). It does not hold for each query.

    Raises ValueError for values that do not exist or do not go together.
    """

    kind: IndexKind = "auto"
    keys: KeyFormat = "float32"
    recall: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, get_args(IndexKind)),
            ("keys", self.keys, get_args(KeyFormat)),
        ):
            if value not in known:
                raise ValueError(f"index {name} is {value!r}: choose from {', '.join(known)}")
        check_recall(self.recall)
        if self.recall < 1 and self.kind != "hierarchical":
            raise ValueError(
                f'recall={self.recall} requires kind="hierarchical", not {self.kind!r}: the other indexes have no '
                "recall setting"
            )


def index_options(index: IndexKind | IndexOptions) -> IndexOptions:
    """The options of an index that is named by its kind, or given by them; raises ValueError for anything else."""
    return index if isinstance(index, IndexOptions) else IndexOptions(index)


def make_index(
    options: IndexOptions, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device
) -> Index:
    """An empty index for `rows` rows; with `constant_keys`, as in layer 0, all landmark keys are equal.

    Keeps the newest `max_blocks` blocks of each row, all if None. Raises ValueError if the index does not work on
    `device`.
    """
    if constant_keys:
        return ConstantIndex(rows, max_blocks)
    on_cpu = device.type == "cpu"
    if options.kind == "hierarchical" and not on_cpu:
        raise ValueError(f'index kind "{options.kind}" works on a CPU, not on {device}: choose "exact" or "auto"')
    if options.kind == "exact" or not on_cpu:
        return ExactIndex(rows, max_blocks, keys=options.keys)
    return HierarchicalIndex(rows, max_blocks, keys=options.keys, recall=options.recall)
