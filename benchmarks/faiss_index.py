"""Indexes of the library faiss: flat (exact), IVF and HNSW (approximate). Only this module imports it.

How equal scores rank is up to faiss.
"""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor

from landmark.index.base import Index, ResidentKeys
from landmark.index.branch import ForkedIndex
from landmark.index.topk import top_newest
from landmark.store.block_buffer import slot_numbers

FaissKind = Literal["flat", "ivf", "hnsw"]

_LISTS_FROM = 2048  # keys; fewer are all scored
_GROWTH = 8  # lists are made anew when there are so many times the keys they were made for
_PROBED = 8  # one list in so many is looked into
_NEIGHBOURS = 32  # of a key in the graph
_WIDTH = 64  # keys that a walk through the graph keeps in sight


class FaissIndex:
    """One faiss index for each row and key-value head; implements `landmark.index.Index` but for `scores`.

    Raises ValueError if faiss is not installed, for `max_blocks`, since faiss drops nothing, and for keys that are not
    float32 on a CPU.
    """

    def __init__(self, rows: int, max_blocks: int | None = None, *, kind: FaissKind) -> None:
        if max_blocks is not None:
            raise ValueError(
                f"the index faiss_{kind} keeps all blocks and max_blocks is {max_blocks}: choose the exact or the "
                "hierarchical index, or no max_blocks"
            )
        _library()
        self._kind: FaissKind = kind
        self._counts = [0] * rows
        self._made = [0] * rows  # keys for which the row's lists were made
        self._parts: list[list[Any]] = [[] for _ in range(rows)]  # one for each key-value head, once there are keys

    def append(self, row: int, keys: Tensor) -> None:
        if keys.device.type != "cpu" or keys.dtype != torch.float32:
            raise ValueError(
                f"the index faiss_{self._kind} takes float32 keys on a CPU, not {keys.dtype} on {keys.device}: "
                "choose the exact index"
            )
        if not any(self._parts):
            self._parts[:] = [[self._empty(keys.shape[2]) for _ in keys] for _ in self._counts]
        for part, own in zip(self._parts[row], keys, strict=True):
            part.add(own.contiguous().numpy())
        self._counts[row] += keys.shape[1]
        if self._kind == "ivf" and self._counts[row] >= max(_LISTS_FROM, _GROWTH * self._made[row]):
            self._parts[row] = [self._in_lists(part) for part in self._parts[row]]
            self._made[row] = self._counts[row]

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        scores = query.new_full((*query.shape[:3], k), -torch.inf)
        numbers = torch.full(scores.shape, -1)
        for row, parts in enumerate(self._parts):
            # What stands beyond `upto` may crowd out what is asked for, but no more than there is.
            count = min(self._counts[row], k + max(0, self._counts[row] - upto[row]))
            if not count:
                continue
            for head, part in enumerate(parts):
                some = slice(head * (query.shape[1] // len(parts)), (head + 1) * (query.shape[1] // len(parts)))
                own = query[row, some].contiguous()
                found = [torch.from_numpy(x) for x in part.search(own.view(-1, own.shape[-1]).numpy(), count)]
                labels = found[1].masked_fill(found[1] >= upto[row], -1)
                best = top_newest(found[0], labels, k)
                scores[row, some], numbers[row, some] = (x.view(*own.shape[:2], k) for x in best)
        return scores, numbers

    def resident_keys(self, k: int, upto: list[int]) -> ResidentKeys | None:
        return None

    def scores(self, query: Tensor, upto: list[int]) -> Tensor:
        raise ValueError(
            f"the index faiss_{self._kind} does not give the score of every block, which a selection per token or per "
            "head needs: choose the exact or the hierarchical index, or selection per_token_and_head"
        )

    def numbers(self, device: torch.device) -> Tensor:
        return slot_numbers(tuple(self._counts), None, device)

    def keys(self, numbers: Tensor) -> Tensor:
        rows = []
        for own, parts, count in zip(numbers.clamp(min=0), self._parts, self._counts, strict=True):
            known = own if count else own[:0]
            keys = [torch.from_numpy(part.reconstruct_batch(known.numpy())) for part in parts]
            rows.append(torch.stack(keys) if count else torch.zeros(len(parts), len(own), parts[0].d))
        return torch.stack(rows)

    def reorder(self, rows: list[int]) -> None:
        if rows != list(range(len(self._counts))):
            self._parts = [[_library().clone_index(part) for part in self._parts[row]] for row in rows]
        self._counts = [self._counts[row] for row in rows]
        self._made = [self._made[row] for row in rows]

    def fork(self) -> Index:
        return ForkedIndex(self.view(), self._counts, FaissIndex(len(self._counts), kind=self._kind))

    def view(self) -> Index:
        return copy.copy(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys kept and of what leads to them."""
        return sum(self._bytes_of(part) for parts in self._parts for part in parts)

    def _empty(self, dim: int) -> Any:
        if self._kind == "hnsw":
            graph = _library().IndexHNSWFlat(dim, _NEIGHBOURS, _library().METRIC_INNER_PRODUCT)
            graph.hnsw.efSearch = _WIDTH
            return graph
        return _library().IndexFlatIP(dim)

    def _in_lists(self, part: Any) -> Any:
        """An index with lists of the same keys, about as many lists as keys in each."""
        keys = part.reconstruct_n(0, part.ntotal)
        lists = math.isqrt(part.ntotal)
        made = _library().IndexIVFFlat(_library().IndexFlatIP(part.d), part.d, lists, _library().METRIC_INNER_PRODUCT)
        made.nprobe = -(-lists // _PROBED)
        made.train(keys)
        made.add(keys)
        made.make_direct_map()  # to find keys by number
        return made

    def _bytes_of(self, part: Any) -> int:
        if self._kind == "hnsw":
            return part.ntotal * part.d * 4 + part.hnsw.neighbors.size() * 4
        ids = 16 if isinstance(part, _library().IndexIVF) else 0  # its number in a list, and its list by number
        return part.ntotal * (part.d * 4 + ids)


def _library() -> Any:
    try:
        import faiss
    except ImportError as missing:
        raise ValueError(
            "this index needs faiss-cpu, which is not installed: pip install 'landmark-attention[benchmarks]'"
        ) from missing
    return faiss
