"""Which index keeps the landmark keys of a layer."""

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
    """How landmark keys are kept and searched.

    "auto" is the hierarchical index on a CPU, which is exact search while blocks are few, and exact search elsewhere.
    `keys` other than "float32" are rounded, and the rounded key counts from then on. `recall` below 1 lets the
    hierarchical index miss some of the best blocks: of the `retrieve` best, about that share or more is found on
    average over some hundreds of queries of a head, also after text or queries change, once that was noticed (see
    docs/indexes.md). It is no promise for a single query.

    Raises ValueError for options that do not exist or do not go together.
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
                f'recall {self.recall} needs kind "hierarchical", not {self.kind!r}: the other indexes have no recall'
                " setting"
            )


def make_index(
    options: IndexOptions, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device
) -> Index:
    """An empty index for `rows` rows; `constant_keys` promises that all keys are equal, and then one stands for all.

    Raises ValueError if the index does not work on `device`.
    """
    if constant_keys:
        return ConstantIndex(rows, max_blocks)
    on_cpu = device.type == "cpu"
    if options.kind == "hierarchical" and not on_cpu:
        raise ValueError(f'index kind "{options.kind}" works on a CPU, not on {device}: choose "exact" or "auto"')
    if options.kind == "exact" or not on_cpu:
        return ExactIndex(rows, max_blocks, keys=options.keys)
    return HierarchicalIndex(rows, max_blocks, keys=options.keys, recall=options.recall)
