"""The lists of one row and key-value head.

Lists are groups by k-means. A query ranks them by what it may score in them: its product with their mean and some
deviations more, for the best are there for what they differ from it. The newest blocks lie in a list of their own, into
which every query looks, until there are enough of them to be laid into the others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from landmark.index.basis import Array
from landmark.index.clusters import means_of, nearest, spreads
from landmark.index.coarse import Coding, coding_for
from landmark.index.coarse_loops import CODES, encode
from landmark.index.key_ring import KeyRing
from landmark.index.list_loops import LANES, Tiles, search_lists
from landmark.ops.compiled import in_parts

_NEWEST = 1024  # blocks in the last list, at most
_PER_ROOT = 2  # lists, by the square root of the number of blocks
_SAMPLE = 32  # keys of each list that its mean is made from
_DEVIATIONS = 2.0
_ENOUGH = 64  # best blocks of which it is known what it takes to find them
_TRIED = 128  # queries of one search that they are sought for, at most
_FIRST = 2  # lists that every query looks into before any query looks further: later ones then rule out more
_QUERIES = 1 << 10  # that are searched for at once
_TOGETHER = 1 << 14  # blocks that are encoded at once


@dataclass(frozen=True)
class HeadKeys:
    """The keys of one row and head of a ring."""

    ring: KeyRing
    row: int
    head: int

    @property
    def oldest(self) -> int:
        return self.ring.ring.oldest(self.row)

    @property
    def count(self) -> int:
        return self.ring.ring.counts[self.row]

    def at(self, numbers: Tensor) -> Tensor:
        """Keys `[m,D]` of the blocks `numbers [m]`."""
        everywhere = numbers.expand(len(self.ring.ring.counts), -1)
        return self.ring.at(everywhere)[self.row, self.head]

    def arrays(self) -> tuple[Array, Array | None]:
        """Keys `[S,D]` and units `[S]` for compiled loops."""
        keys, units = self.ring.arrays()
        return keys[self.row, self.head], None if units is None else units[self.row, self.head]


class _Blocks(NamedTuple):
    """Encoded blocks, one after the other."""

    numbers: Array  # [n]
    codes: Array  # [n,CODES]
    rests: Array  # [n]


class HeadLists:
    """Lists to find a share `recall` of the best blocks of one row and head.

    Half of what may be missed may lie in lists without a look, and the other half where codes leave too little for what
    has none: the bound by Cauchy and Schwarz is far from what is there. How many lists, and how much of the bound, it
    takes to find the best, queries tell themselves: for some of them all lists are searched, with the whole bound, and
    what it would have taken is remembered.
    """

    def __init__(self, recall: float, weighed: Tensor, coding: Coding, tiles: Tiles) -> None:
        self._share = (1 + recall) / 2
        self._weighed = weighed  # [lists,D + 1]: means, and the deviations that come on top for each unit of a query
        self._means = weighed[:, :-1].contiguous()
        self._coding = coding
        self._tiles = tiles
        # Of the best blocks of some queries, in order: ranks of their lists, and cosines of what has no code.
        self._ranks: list[float] = []
        self._cosines: list[float] = []
        self.made = 0  # blocks that had come when the lists were made
        self._listed = 0  # blocks before it are in lists, and those after among the newest
        self._end = 0  # blocks before it are encoded

    @classmethod
    def over(cls, keys: HeadKeys, query: Tensor, recall: float) -> "HeadLists":
        """Lists over all of `keys`; some queries `[R,D]` have a say in what codes are good for."""
        kept = keys.count - keys.oldest
        lists = min(kept, _PER_ROOT * math.isqrt(kept))
        sampled = min(kept, _SAMPLE * lists)
        sample = keys.at(keys.oldest + torch.arange(sampled) * kept // sampled).to(query.dtype)
        means = means_of(sample, lists)
        weighed = torch.cat((means, _DEVIATIONS * spreads(sample, means)[:, None]), 1)
        coding = coding_for(sample.double().numpy(), query.double().numpy())
        empty = np.empty((0, CODES), np.int8), np.empty(0, means.numpy().dtype)
        made = cls(
            recall, weighed, coding, _tiles(np.empty(0, np.int64), _Blocks(np.empty(0, np.int32), *empty), lists)
        )
        made.made, made._end = keys.count, keys.oldest
        made._lay_out(keys, made._encoded(keys))
        return made

    @classmethod
    def resume(cls, recall: float, tensors: Mapping[str, Tensor]) -> "HeadLists":
        """Lists as they were when `tensors` gave theirs."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        coding = Coding._make(arrays[name] for name in Coding._fields)
        made = cls(recall, tensors["weighed"], coding, Tiles._make(arrays[name] for name in Tiles._fields))
        made._ranks, made._cosines = tensors["ranks"].tolist(), tensors["cosines"].tolist()
        made.made, made._listed, made._end = tensors["counts"].tolist()
        return made

    def tensors(self) -> dict[str, Tensor]:
        """All there is to know, by name."""
        arrays = {**self._coding._asdict(), **self._tiles._asdict()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {
            "weighed": self._weighed,
            "ranks": torch.tensor(self._ranks, dtype=torch.float64),
            "cosines": torch.tensor(self._cosines, dtype=torch.float64),
            "counts": torch.tensor([self.made, self._listed, self._end]),
        }

    def update(self, keys: HeadKeys) -> None:
        """Takes in the blocks that came since."""
        if keys.count == self._end:
            return
        new, newest = self._encoded(keys), keys.count - self._listed
        if newest > _NEWEST:
            self._lay_out(keys, new)
        else:
            first = self._tiles.first
            _put(self._tiles, first[-2] * LANES + new.numbers - self._listed, new)
            first[-1] = first[-2] + -(-newest // LANES)

    def search(self, keys: HeadKeys, query: Tensor, end: int, best: Tensor, found: Tensor, read: Tensor) -> None:
        """Fills `best` and `found [R,k]` with scores and numbers of the best blocks before `end` for `query [R,D]`.

        Where there are fewer, -inf and -1. `read [R]` becomes how many keys were scored.
        """
        if len(self._ranks) < _ENOUGH:
            self._learn(keys, query, end, best.shape[1])
        lists = 1 + int(_enough(self._ranks, self._share, len(self._means) - 1))
        shrink = max(0.0, _enough(self._cosines, self._share, 1.0))
        for start in range(0, len(query), _QUERIES):
            some = slice(start, start + _QUERIES)
            self._look(keys, end, lists, shrink, query[some], best[some], found[some], read[some])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, numbers and means."""
        return sum(array.nbytes for array in self._tiles) + self._weighed.nbytes

    def _likely(self, query: Tensor) -> Tensor:
        """What each query may score in each list, `[R,lists]`."""
        return torch.cat((query, torch.linalg.vector_norm(query, dim=1, keepdim=True)), 1) @ self._weighed.T

    def _learn(self, keys: HeadKeys, query: Tensor, end: int, k: int) -> None:
        """Remembers what it takes to find the best blocks of some of the queries."""
        some = query[torch.arange(min(len(query), _TRIED)) * len(query) // min(len(query), _TRIED)]
        best = some.new_full((len(some), k), -torch.inf)
        found = torch.full(best.shape, -1)
        self._look(keys, end, len(self._means), 1.0, some, best, found, torch.empty(len(some), dtype=torch.long))
        of_query, place = (found >= 0).nonzero(as_tuple=True)
        numbers = found[of_query, place]
        own, likely = keys.at(numbers).to(query.dtype), self._likely(some)[of_query]
        ranks = (likely > likely.gather(1, nearest(own, self._means)[:, None])).sum(1)
        ranks = torch.where(numbers < self._listed, ranks, 0)  # the newest are looked at in any case
        mean, key_basis, query_basis, *_ = self._coding
        keys_rest = (own.double().numpy() - mean) @ key_basis[CODES:].T
        rests = some[of_query].double().numpy() @ query_basis[CODES:].T
        most = np.linalg.norm(keys_rest, axis=1) * np.linalg.norm(rests, axis=1)
        cosines = (keys_rest * rests).sum(1) / np.maximum(most, np.finfo(np.float64).tiny)
        self._ranks, self._cosines = sorted(self._ranks + ranks.tolist()), sorted(self._cosines + cosines.tolist())

    def _look(
        self, keys: HeadKeys, end: int, lists: int, shrink: float, query: Tensor, best: Tensor, found: Tensor,
        read: Tensor,
    ) -> None:  # fmt: skip
        """Fills `best`, `found` and `read` from the newest and so many of the lists most likely for each query."""
        likely = self._likely(query).numpy()
        first = min(_FIRST, lists)
        limits = np.stack([_highest(likely, lists), _highest(likely, first)], 1)
        bounds = np.array((keys.oldest, min(end, keys.count)))
        arrays = [x.numpy() for x in (query, best, found, read)]
        inputs = *keys.arrays(), self._coding, self._tiles, bounds, likely, limits, *arrays, keys.ring.ring.modulus
        in_parts(lambda start, stop: search_lists(*inputs, shrink, start, stop), len(query), size=lists * LANES)

    def _encoded(self, keys: HeadKeys) -> _Blocks:
        """The blocks that came since those encoded before."""
        numbers = np.arange(max(self._end, keys.oldest), keys.count, dtype=np.int32)
        codes = np.empty((len(numbers), CODES, 1), np.int8)
        rests = np.empty((len(numbers), 1), self._means.numpy().dtype)
        mean, key_basis, _, steps, reach = self._coding
        for start in range(0, len(numbers), _TOGETHER):
            some = slice(start, start + _TOGETHER)
            own = keys.at(torch.from_numpy(numbers[some]).long()).numpy()
            encode(own, None, mean, key_basis, steps, codes[some], rests[some], reach, len(own), 0, len(own))
        self._end = keys.count
        return _Blocks(numbers, codes[..., 0], rests[..., 0])

    def _lay_out(self, keys: HeadKeys, new: _Blocks) -> None:
        """Puts all blocks that are kept, and `new` ones, into lists, and leaves none among the newest."""
        first, lists = self._tiles.first, len(self._means)
        kept = self._tiles.numbers[: first[-1]].reshape(-1) >= keys.oldest
        of_kept = np.repeat(np.arange(lists + 1), np.diff(first) * LANES)[kept]
        blocks = _Blocks._make(map(np.concatenate, zip(_at(self._tiles, kept), new, strict=True)))
        belongs = np.concatenate((of_kept, np.full(len(new.numbers), lists)))
        late = belongs == lists
        numbers = torch.from_numpy(blocks.numbers[late]).long().split(_TOGETHER)
        belongs[late] = np.concatenate(
            [nearest(keys.at(some).to(self._means.dtype), self._means).numpy() for some in numbers]
        )
        self._tiles, self._listed = _tiles(belongs, blocks, lists), keys.count


def _enough(needed: list[float], share: float, most: float) -> float:
    """What was enough for `share` of those who `needed` so much, in order, and for one more; `most` if nothing was."""
    place = math.ceil((len(needed) + 1) * share) - 1
    return needed[place] if place < len(needed) else most


def _highest(likely: Array, count: int) -> Array:
    """The lowest of the `count` highest in each row of `likely [R,lists]`."""
    place = likely.shape[1] - count
    return np.partition(likely, place, axis=1)[:, place]


def _tiles(belongs: Array, blocks: _Blocks, lists: int) -> Tiles:
    """Tiles of `blocks`, each in the list that it `belongs [n]` to, with room for the newest."""
    order = np.argsort(belongs, kind="stable")
    sizes = np.bincount(belongs, minlength=lists)
    first = np.concatenate(([0], np.cumsum(-(-sizes // LANES))))
    count = first[-1] + _NEWEST // LANES
    tiles = Tiles(
        np.full((count, LANES), -1, np.int32),
        np.zeros((count, CODES, LANES), np.int8),
        np.zeros((count, LANES), blocks.rests.dtype),
        np.append(first, first[-1]),
    )
    own = belongs[order]
    _put(
        tiles,
        first[own] * LANES + np.arange(len(own)) - (np.cumsum(sizes) - sizes)[own],
        _Blocks(*(x[order] for x in blocks)),
    )
    return tiles


def _at(tiles: Tiles, kept: Array) -> _Blocks:
    """The blocks at those of the first lanes that are `kept [n]`."""
    count = len(kept) // LANES
    codes = tiles.codes[:count].swapaxes(1, 2).reshape(-1, CODES)
    return _Blocks(tiles.numbers[:count].reshape(-1)[kept], codes[kept], tiles.rests[:count].reshape(-1)[kept])


def _put(tiles: Tiles, lanes: Array, blocks: _Blocks) -> None:
    """Puts blocks at `lanes [n]`, counted through all tiles."""
    places = lanes // LANES, lanes % LANES
    tiles.numbers[places], tiles.rests[places] = blocks.numbers, blocks.rests
    tiles.codes.swapaxes(1, 2)[places] = blocks.codes
