"""The lists of one row and key-value head.

Lists are groups by k-means. A query ranks them by what it may score in them: its product with their mean and some
deviations more, for the best are there for what they differ from it. The newest blocks lie in a list of their own, into
which every query looks, until there are enough of them to be laid into the others.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from landmark.index.codes import Array, Coding, coding_for
from landmark.index.codes_numba import CODES, encode
from landmark.index.ivf_numba import LANES, Tiles, search_lists
from landmark.index.keys import KeyBuffer
from landmark.index.recall import Evidence
from landmark.ops.numba_loops import in_parts

# Groups of keys that are alike, by k-means, and the mean and spread of each.


_ROUNDS = 6
_POINTS_TOGETHER = 1 << 21  # products of keys and means computed at once


def means_of(keys: Tensor, count: int) -> Tensor:
    """Means `[count,D]` of groups of `keys [n,D]`, each the nearest to the keys of its group; n is `count` or more.

    The same keys give the same means. A group that loses all its keys keeps its mean.
    """
    means = keys[torch.arange(count) * len(keys) // count].clone()
    for _ in range(_ROUNDS):
        totals, sizes = torch.zeros_like(means), keys.new_zeros(count, 1)
        for some in keys.split(max(1, _POINTS_TOGETHER // count)):
            group = nearest(some, means)
            totals.index_add_(0, group, some)
            sizes.index_add_(0, group, sizes.new_ones(len(some), 1))
        means = torch.where(sizes > 0, totals / sizes.clamp(min=1), means)
    return means


def nearest(keys: Tensor, means: Tensor) -> Tensor:
    """The nearest of `means [m,D]` to each of `keys [n,D]`, long [n]."""
    norms = means.square().sum(1) / 2
    parts = keys.split(max(1, _POINTS_TOGETHER // len(means)))
    return torch.cat([torch.addmm(norms, part, means.T, beta=-1).argmax(1) for part in parts])


def spreads(keys: Tensor, means: Tensor) -> Tensor:
    """Root mean square of an entry of a key less its group's mean, [m]; 0 for groups without keys."""
    group = nearest(keys, means)
    squares = (keys - means[group]).square().mean(1)
    sizes = torch.bincount(group, minlength=len(means))
    return (keys.new_zeros(len(means)).index_add_(0, group, squares) / sizes.clamp(min=1)).sqrt()


# Encoded blocks in tiles, by list, as compiled loops search them.


class Blocks(NamedTuple):
    """Encoded blocks, one after the other."""

    numbers: Array  # [n]
    codes: Array  # [n,CODES]
    rests: Array  # [n]

    def and_then(self, more: "Blocks") -> "Blocks":
        """These and others behind them."""
        return Blocks._make(map(np.concatenate, zip(self, more, strict=True)))


def tiles_of(belongs: Array, blocks: Blocks, lists: int, newest: int) -> Tiles:
    """Tiles of `blocks`, each in the list that it `belongs [n]` to, with room for so many of the `newest`."""
    order = np.argsort(belongs, kind="stable")
    sizes = np.bincount(belongs, minlength=lists)
    first = np.concatenate(([0], np.cumsum(-(-sizes // LANES))))
    count = first[-1] + -(-newest // LANES)
    tiles = Tiles(
        np.full((count, LANES), -1, np.int32),
        np.zeros((count, CODES, LANES), np.int8),
        np.zeros((count, LANES), blocks.rests.dtype),
        np.append(first, first[-1]),
    )
    own = belongs[order]
    lanes = first[own] * LANES + np.arange(len(own)) - (np.cumsum(sizes) - sizes)[own]
    _put(tiles, lanes, Blocks(*(x[order] for x in blocks)))
    return tiles


def put_newest(tiles: Tiles, blocks: Blocks, listed: int) -> None:
    """Puts blocks among the newest, of which number `listed` is the first."""
    first = tiles.first
    _put(tiles, first[-2] * LANES + blocks.numbers - listed, blocks)
    first[-1] = first[-2] + -(-(blocks.numbers[-1] + 1 - listed) // LANES)


def blocks_of(tiles: Tiles, oldest: int) -> tuple[Array, Blocks]:
    """The list of every block in `tiles` from number `oldest` on, the newest being the last list, and the blocks."""
    first = tiles.first
    kept = tiles.numbers[: first[-1]].reshape(-1) >= oldest
    belongs = np.repeat(np.arange(len(first) - 1), np.diff(first) * LANES)[kept]
    codes = tiles.codes[: first[-1]].swapaxes(1, 2).reshape(-1, CODES)
    numbers, rests = (x[: first[-1]].reshape(-1)[kept] for x in (tiles.numbers, tiles.rests))
    return belongs, Blocks(numbers, codes[kept], rests)


def _put(tiles: Tiles, lanes: Array, blocks: Blocks) -> None:
    """Puts blocks at `lanes [n]`, counted through all tiles."""
    places = lanes // LANES, lanes % LANES
    tiles.numbers[places], tiles.rests[places] = blocks.numbers, blocks.rests
    tiles.codes.swapaxes(1, 2)[places] = blocks.codes


_NEWEST = 1024  # blocks in the last list, at most
_PER_ROOT = 2  # lists, by the square root of the number of blocks
_SAMPLE = 32  # keys of each list that its mean is made from
_DEVIATIONS = 2.0
_TRIED = 128  # queries of one search that they are sought for, at most
_FIRST = 2  # lists that every query looks into before any query looks further: later ones then rule out more
_QUERIES = 1 << 10  # that are searched for at once
_TOGETHER = 1 << 14  # blocks that are encoded at once


@dataclass(frozen=True)
class HeadKeys:
    """The keys of one row and head of a ring."""

    ring: KeyBuffer
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


class _Laid(NamedTuple):
    """Blocks in lists: all three change together, for several branches may search what they share at once."""

    tiles: Tiles
    listed: int  # blocks before it are in lists of their likes, and those after among the newest
    end: int  # blocks before it are in tiles at all


class HeadLists:
    """Lists to find a share `recall` of the best blocks of one row and head.

    Half of what may be missed may lie in lists without a look, and the other half where codes leave too little for what
    has none: the bound by Cauchy and Schwarz is far from what is there. How many lists, and how much of the bound, it
    takes to find the best, queries tell themselves: for some of them all lists are searched, with the whole bound, and
    what it would have taken is `landmark.index.recall`. It is gathered anew whenever blocks were laid into the lists,
    and whenever a query that is searched for in full, one of many, shows that it holds no longer.
    """

    def __init__(self, recall: float, made: int, weighed: Tensor, coding: Coding, laid: _Laid) -> None:
        self.made = made  # blocks that had come when the lists were made
        self._recall = recall
        self._weighed = weighed  # [lists,D + 1]: means, and the deviations that come on top for each unit of a query
        self._means = weighed[:, :-1].contiguous()
        self._coding = coding
        self._laid = laid

    @classmethod
    def over(cls, keys: HeadKeys, query: Tensor, recall: float) -> "HeadLists":
        """Lists over all of `keys`; some queries `[R,D]` have a say in what codes are good for."""
        oldest, kept = keys.oldest, keys.count - keys.oldest
        lists = min(kept, _PER_ROOT * math.isqrt(kept))
        sampled = min(kept, _SAMPLE * lists)
        sample = keys.at(oldest + torch.arange(sampled) * kept // sampled).to(query.dtype)
        means = means_of(sample, lists)
        weighed = torch.cat((means, _DEVIATIONS * spreads(sample, means)[:, None]), 1)
        coding = coding_for(sample.double().numpy(), query.double().numpy())
        nothing = Blocks(np.empty(0, np.int32), np.empty((0, CODES), np.int8), np.empty(0, means.numpy().dtype))
        laid = _Laid(tiles_of(np.empty(0, np.int64), nothing, lists, _NEWEST), oldest, oldest)
        made = cls(recall, keys.count, weighed, coding, laid)
        made._lay_out(keys, made._encoded(keys, oldest))
        return made

    @classmethod
    def resume(cls, recall: float, tensors: Mapping[str, Tensor]) -> "HeadLists":
        """Lists as they were when `tensors` gave theirs."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        coding = Coding._make(arrays[name] for name in Coding._fields)
        tiles = Tiles._make(arrays[name] for name in Tiles._fields)
        count, listed, end = tensors["counts"].tolist()
        return cls(recall, count, tensors["weighed"], coding, _Laid(tiles, listed, end))

    def tensors(self) -> dict[str, Tensor]:
        """All there is to know, by name."""
        tiles, listed, end = self._laid
        arrays = {**self._coding._asdict(), **tiles._asdict()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {
            "weighed": self._weighed,
            "counts": torch.tensor([self.made, listed, end]),
        }

    def update(self, keys: HeadKeys) -> None:
        """Takes in the blocks that came since."""
        laid = self._laid
        if keys.count == laid.end:
            return
        new = self._encoded(keys, max(laid.end, keys.oldest))
        if keys.count - laid.listed > _NEWEST:
            self._lay_out(keys, new)
        else:
            put_newest(laid.tiles, new, laid.listed)
            self._laid = laid._replace(end=keys.count)

    def search(
        self, keys: HeadKeys, evidence: Evidence, query: Tensor, end: int, best: Tensor, found: Tensor, read: Tensor
    ) -> None:
        """Fills `best` and `found [R,k]` with scores and numbers of the best blocks before `end` for `query [R,D]`.

        Where there are fewer, -inf and -1. `read [R]` becomes how many keys were scored. `evidence` of earlier queries
        says how far to look, and learns from these.
        """
        evidence.is_of(self.made, self._laid.listed)
        share, k = (1 + self._recall) / 2, best.shape[1]
        lists, shrink = evidence.enough(share, len(self._means))
        tried = evidence.to_try(len(query))
        if evidence.suffices and len(tried):
            ranks, cosines = self._needed(keys, query[tried], end, k)
            missed = sum(rank >= lists or cosine > shrink for rank, cosine in zip(ranks, cosines, strict=True))
            if evidence.surprised_by(missed, len(ranks), self._recall):
                evidence.forget()  # only then: as long as it holds, what is found depends on no other queries
        if not evidence.suffices:
            some = min(len(query), _TRIED)
            evidence.add(*self._needed(keys, query[torch.arange(some) * len(query) // some], end, k))
            lists, shrink = evidence.enough(share, len(self._means))
        for start in range(0, len(query), _QUERIES):
            some = slice(start, start + _QUERIES)
            self._look(keys, end, lists, shrink, query[some], best[some], found[some], read[some])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, numbers and means."""
        return sum(array.nbytes for array in self._laid.tiles) + self._weighed.nbytes

    def _likely(self, query: Tensor) -> Tensor:
        """What each query may score in each list, `[R,lists]`."""
        return torch.cat((query, torch.linalg.vector_norm(query, dim=1, keepdim=True)), 1) @ self._weighed.T

    def _needed(self, keys: HeadKeys, query: Tensor, end: int, k: int) -> tuple[list[float], list[float]]:
        """What it takes to find the best blocks of `query [R,D]`: ranks of their lists, cosines of what has no code."""
        best = query.new_full((len(query), k), -torch.inf)
        found = torch.full(best.shape, -1)
        self._look(keys, end, len(self._means), 1.0, query, best, found, torch.empty(len(query), dtype=torch.long))
        of_query, place = (found >= 0).nonzero(as_tuple=True)
        numbers = found[of_query, place]
        own, likely = keys.at(numbers).to(query.dtype), self._likely(query)[of_query]
        ranks = (likely > likely.gather(1, nearest(own, self._means)[:, None])).sum(1)
        ranks = torch.where(numbers < self._laid.listed, ranks, 0)  # the newest are looked at in any case
        mean, key_basis, query_basis, *_ = self._coding
        keys_rest = (own.double().numpy() - mean) @ key_basis[CODES:].T
        rests = query[of_query].double().numpy() @ query_basis[CODES:].T
        most = np.linalg.norm(keys_rest, axis=1) * np.linalg.norm(rests, axis=1)
        cosines = (keys_rest * rests).sum(1) / np.maximum(most, np.finfo(np.float64).tiny)
        return ranks.tolist(), cosines.tolist()

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
        inputs = *keys.arrays(), self._coding, self._laid.tiles, bounds, likely, limits, *arrays, keys.ring.ring.modulus
        in_parts(lambda start, stop: search_lists(*inputs, shrink, start, stop), len(query), size=lists * LANES)

    def _encoded(self, keys: HeadKeys, start: int) -> Blocks:
        """The blocks from number `start` on."""
        numbers = np.arange(start, keys.count, dtype=np.int32)
        codes = np.empty((len(numbers), CODES, 1), np.int8)
        rests = np.empty((len(numbers), 1), self._means.numpy().dtype)
        mean, key_basis, _, steps, reach = self._coding
        for begin in range(0, len(numbers), _TOGETHER):
            some = slice(begin, begin + _TOGETHER)
            own = keys.at(torch.from_numpy(numbers[some]).long()).numpy()
            encode(own, None, mean, key_basis, steps, codes[some], rests[some], reach, len(own), 0, len(own))
        return Blocks(numbers, codes[..., 0], rests[..., 0])

    def _lay_out(self, keys: HeadKeys, new: Blocks) -> None:
        """Puts all blocks that are kept, and `new` ones, into lists, and leaves none among the newest."""
        lists = len(self._means)
        belongs, blocks = blocks_of(self._laid.tiles, keys.oldest)
        belongs, blocks = np.append(belongs, np.full(len(new.numbers), lists)), blocks.and_then(new)
        late = belongs == lists
        numbers = torch.from_numpy(blocks.numbers[late]).long().split(_TOGETHER)
        found = [nearest(keys.at(some).to(self._means.dtype), self._means).numpy() for some in numbers]
        belongs[late] = np.concatenate(found)
        self._laid = _Laid(tiles_of(belongs, blocks, lists, _NEWEST), keys.count, keys.count)


def _highest(likely: Array, count: int) -> Array:
    """The lowest of the `count` highest in each row of `likely [R,lists]`."""
    place = likely.shape[1] - count
    return np.partition(likely, place, axis=1)[:, place]


# Landmark keys in lists of those that are alike: a query looks into a few lists only.


_GROWTH = 2  # lists are made anew when there are so many times the blocks they were made for


class Lists:
    """Lists for every row and key-value head of a ring of keys, to find a share `recall` of the best blocks."""

    def __init__(self, rows: int, recall: float) -> None:
        self._recall = recall
        self._heads: list[list[HeadLists]] = [[] for _ in range(rows)]
        self._evidence: list[list[Evidence]] = [[] for _ in range(rows)]

    def search(self, keys: KeyBuffer, query: Tensor, k: int, upto: list[int]) -> tuple[Array, Array, Array]:
        """Scores and numbers `[B,H,T,k]` as `Index.search` gives them, and how many keys were read `[B,H,T]`."""
        query = query.contiguous()
        best = query.new_full((*query.shape[:3], k), -torch.inf)
        found, read = torch.full(best.shape, -1), torch.zeros(best.shape[:3], dtype=torch.long)
        for row, end in enumerate(upto):
            heads = self._up_to_date(keys, row, query[row])
            for head, lists in enumerate(heads):
                group = query.shape[1] // len(heads)
                some = slice(head * group, (head + 1) * group)
                # The heads of a group lie side by side, so that these are views to write to.
                queries, *out = (x[row, some].flatten(0, 1) for x in (query, best, found, read))
                lists.search(HeadKeys(keys, row, head), self._evidence_of(row, head), queries, end, *out)
        return best.numpy(), found.numpy(), read.numpy()

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        if rows != list(range(len(self._heads))):
            self._heads = [copy.deepcopy(self._heads[row]) for row in rows]
            self._evidence = [copy.deepcopy(self._evidence[row]) for row in rows]

    def view(self) -> "Lists":
        """The same lists, with evidence that goes on from here by itself."""
        other = copy.copy(self)
        other._evidence = copy.deepcopy(self._evidence)
        return other

    def _evidence_of(self, row: int, head: int) -> Evidence:
        known = self._evidence[row]
        known += [Evidence() for _ in range(head + 1 - len(known))]
        return known[head]

    def tensors(self) -> dict[str, Tensor]:
        """What was made of the keys, by name, to `resume` from."""
        return {
            f"{row}.{head}.{name}": tensor
            for row, heads in enumerate(self._heads)
            for head, lists in enumerate(heads)
            for name, tensor in (lists.tensors() | self._evidence_of(row, head).tensors()).items()
        }

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with what `tensors` gave, for as many rows, some of the first of whose blocks it was made of."""
        heads: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            row, head, own = name.split(".")
            heads.setdefault((int(row), int(head)), {})[own] = tensor
        for row, head in sorted(heads):
            self._heads[row].append(HeadLists.resume(self._recall, heads[row, head]))
            self._evidence[row].append(Evidence.resume(heads[row, head]))

    @property
    def nbytes(self) -> int:
        """Bytes of what was made of the keys."""
        return sum(lists.nbytes for heads in self._heads for lists in heads)

    def _up_to_date(self, keys: KeyBuffer, row: int, query: Tensor) -> list[HeadLists]:
        """The lists of a row, with all that came; where they are made, `query [H,T,D]` says what queries are like."""
        count, heads = keys.ring.counts[row], self._heads[row]
        if count and (not heads or count >= _GROWTH * heads[0].made):
            groups = query.chunk(keys.arrays()[0].shape[1])
            heads = [
                HeadLists.over(HeadKeys(keys, row, head), own.flatten(0, 1), self._recall)
                for head, own in enumerate(groups)
            ]
            self._heads[row] = heads
        for head, lists in enumerate(heads):
            lists.update(HeadKeys(keys, row, head))
        return heads
