"""IVF index: inverted lists of quantized codes, of which a query probes those with the most promising centroids.

The centroids (the coarse quantizer) are those of k-means. A query ranks lists by the product with their centroid plus a
few standard deviations: the best blocks of a list differ from its centroid. The newest blocks are in a list of their
own, which every query probes, until there are enough of them to be laid out into the others. How many lists a query
probes (nprobe) is calibrated for a recall by `landmark.index.calibration`.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from landmark.index.calibration import Calibration
from landmark.index.codes import Quantizer, counts_of, fit_quantizer, from_tensors, to_tensors
from landmark.index.codes_numba import CODES, encode
from landmark.index.ivf_numba import LANES, InvertedLists, probe_lists
from landmark.index.keys import Array, KeyBuffer
from landmark.ops.parallel import in_parts

_REBUILD_GROWTH = 2  # lists are built anew when there are so many times the blocks they were built for
_LISTS_PER_ROOT = 2  # lists, relative to the square root of the number of blocks
_KEYS_PER_CENTROID = 32  # keys that k-means takes for each list
_ROUNDS = 6  # of k-means
_NEWEST = 1024  # blocks in the list of the newest, at most
_DEVIATIONS = 2.0  # standard deviations on top of the product with a centroid
_CALIBRATED = 128  # queries of one search that a calibration takes, at most
_FIRST_PROBES = 2  # lists that all queries probe before any query probes more: good candidates prune more keys
_QUERY_BATCH = 1 << 10  # queries searched at once
_ENCODE_BATCH = 1 << 14  # blocks encoded at once
_PRODUCTS = 1 << 21  # products of keys and centroids computed at once


# Coarse quantizer: centroids by k-means


def kmeans(keys: Tensor, count: int) -> Tensor:
    """Centroids `[count,D]` of `keys [n,D]`, with n at least `count`.

    Deterministic: the same keys give the same centroids. A list that loses all its keys keeps its centroid.
    """
    centroids = keys[torch.arange(count) * len(keys) // count].clone()
    for _ in range(_ROUNDS):
        totals, sizes = torch.zeros_like(centroids), keys.new_zeros(count, 1)
        for some in keys.split(max(1, _PRODUCTS // count)):
            nearest = nearest_centroids(some, centroids)
            totals.index_add_(0, nearest, some)
            sizes.index_add_(0, nearest, sizes.new_ones(len(some), 1))
        centroids = torch.where(sizes > 0, totals / sizes.clamp(min=1), centroids)
    return centroids


def nearest_centroids(keys: Tensor, centroids: Tensor) -> Tensor:
    """The nearest of `centroids [m,D]` to each of `keys [n,D]`, long [n]."""
    norms = centroids.square().sum(1) / 2
    parts = keys.split(max(1, _PRODUCTS // len(centroids)))
    return torch.cat([torch.addmm(norms, part, centroids.T, beta=-1).argmax(1) for part in parts])


def standard_deviations(keys: Tensor, centroids: Tensor) -> Tensor:
    """Standard deviation of an entry of a key from its nearest centroid, [m]; 0 for lists without keys."""
    nearest = nearest_centroids(keys, centroids)
    squares = (keys - centroids[nearest]).square().mean(1)
    sizes = torch.bincount(nearest, minlength=len(centroids))
    return (keys.new_zeros(len(centroids)).index_add_(0, nearest, squares) / sizes.clamp(min=1)).sqrt()


# Inverted lists


class _EncodedBlocks(NamedTuple):
    """Codes of blocks, one after the other."""

    numbers: Array  # [n]
    codes: Array  # [n,CODES]
    residual_norms: Array  # [n]

    def and_then(self, more: "_EncodedBlocks") -> "_EncodedBlocks":
        """These blocks, followed by `more`."""
        return _EncodedBlocks._make(map(np.concatenate, zip(self, more, strict=True)))


def _build_lists(list_of: Array, blocks: _EncodedBlocks, lists: int, newest: int) -> InvertedLists:
    """Inverted lists of `blocks`, each in its list `list_of [n]`, with room for `newest` blocks in one more list."""
    order = np.argsort(list_of, kind="stable")
    sizes = np.bincount(list_of, minlength=lists)
    starts = np.concatenate(([0], np.cumsum(-(-sizes // LANES))))
    count = starts[-1] + -(-newest // LANES)
    inverted = InvertedLists(
        np.full((count, LANES), -1, np.int32),
        np.zeros((count, CODES, LANES), np.int8),
        np.zeros((count, LANES), blocks.residual_norms.dtype),
        np.append(starts, starts[-1]),
    )
    own = list_of[order]
    lanes = starts[own] * LANES + np.arange(len(own)) - (np.cumsum(sizes) - sizes)[own]
    _write(inverted, lanes, _EncodedBlocks(*(x[order] for x in blocks)))
    return inverted


def _add_newest(lists: InvertedLists, blocks: _EncodedBlocks, listed: int) -> None:
    """Adds blocks to the list of the newest, of which block number `listed` is the first."""
    starts = lists.starts
    _write(lists, starts[-2] * LANES + blocks.numbers - listed, blocks)
    starts[-1] = starts[-2] + -(-(blocks.numbers[-1] + 1 - listed) // LANES)


def _listed_blocks(lists: InvertedLists, oldest: int) -> tuple[Array, _EncodedBlocks]:
    """The blocks in `lists` from number `oldest` on, and the list of each; the newest are in the last list."""
    starts = lists.starts
    kept = lists.numbers[: starts[-1]].reshape(-1) >= oldest
    list_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts) * LANES)[kept]
    codes = lists.codes[: starts[-1]].swapaxes(1, 2).reshape(-1, CODES)
    numbers, residual_norms = (x[: starts[-1]].reshape(-1)[kept] for x in (lists.numbers, lists.residual_norms))
    return list_of, _EncodedBlocks(numbers, codes[kept], residual_norms)


def _write(lists: InvertedLists, lanes: Array, blocks: _EncodedBlocks) -> None:
    """Writes blocks to `lanes [n]`, counted through all tiles."""
    at = lanes // LANES, lanes % LANES
    lists.numbers[at], lists.residual_norms[at] = blocks.numbers, blocks.residual_norms
    lists.codes.swapaxes(1, 2)[at] = blocks.codes


def _check_lists(lists: InvertedLists, listed: int, end: int) -> None:
    """Raises ValueError for saved lists that lead beyond their tiles. Their blocks are compared when they are read."""
    tiles, starts = len(lists.numbers), lists.starts
    if not len(lists.codes) == len(lists.residual_norms) == tiles or len(starts) < 3 or not listed <= end:
        raise ValueError("the saved state of the index has lists of different lengths")
    if starts[0] < 0 or (np.diff(starts) < 0).any() or starts[-1] > tiles:
        raise ValueError(f"the saved state of the index has lists that lead beyond its {tiles} tiles")


# The index of one row and head


@dataclass(frozen=True)
class _HeadKeys:
    """The keys of one row and head of a `KeyBuffer`."""

    buffer: KeyBuffer
    row: int
    head: int

    @property
    def oldest(self) -> int:
        """Number of the oldest block kept."""
        return self.buffer.blocks.oldest(self.row)

    @property
    def count(self) -> int:
        """Number of blocks appended."""
        return self.buffer.blocks.counts[self.row]

    def at(self, numbers: Tensor) -> Tensor:
        """Keys `[m,D]` of the blocks `numbers [m]`."""
        row, head = slice(self.row, self.row + 1), slice(self.head, self.head + 1)
        return self.buffer.at(numbers[None], row, head)[0, 0]

    def arrays(self) -> tuple[Array, Array | None]:
        """Keys `[S,D]` and scales `[S]` for compiled loops."""
        keys, scales = self.buffer.arrays()
        return keys[self.row, self.head], None if scales is None else scales[self.row, self.head]


class _Layout(NamedTuple):
    """Blocks in lists. Replaced as a whole, as branches that share it may search it at the same time."""

    lists: InvertedLists
    listed: int  # blocks before it are in the lists of their centroids, those after in the list of the newest
    end: int  # blocks before it are in lists at all


class _HeadIVF:
    """IVF index of one row and head, for a recall.

    Half of what may be missed may be in lists that are not probed, the other half may have a score above a tightened
    bound: that of Cauchy-Schwarz, at a cosine of 1 between residuals, is far above the scores there are. For both,
    nprobe and the cosine, the calibration takes what exhaustive searches of some queries would have needed. It is
    calibrated anew whenever blocks are laid out, and whenever audited queries show that it no longer holds.
    """

    def __init__(
        self, recall: float, built: int, coarse_quantizer: Tensor, quantizer: Quantizer, layout: _Layout
    ) -> None:
        self.built = built  # number of blocks when the lists were built
        self._recall = recall
        self._coarse_quantizer = coarse_quantizer  # [lists,D + 1]: centroids, and deviations per unit of query norm
        self._centroids = coarse_quantizer[:, :-1].contiguous()
        self._quantizer = quantizer
        self._layout = layout

    @classmethod
    def build(cls, keys: _HeadKeys, query: Tensor, recall: float) -> "_HeadIVF":
        """Lists of all `keys`, with a quantizer for codes that is fitted to queries like `query [R,D]`."""
        oldest, kept = keys.oldest, keys.count - keys.oldest
        lists = min(kept, _LISTS_PER_ROOT * math.isqrt(kept))
        sampled = min(kept, _KEYS_PER_CENTROID * lists)
        sample = keys.at(oldest + torch.arange(sampled) * kept // sampled).to(query.dtype)
        centroids = kmeans(sample, lists)
        deviations = _DEVIATIONS * standard_deviations(sample, centroids)
        quantizer = fit_quantizer(sample.double().numpy(), query.double().numpy())
        nothing = _EncodedBlocks(
            np.empty(0, np.int32), np.empty((0, CODES), np.int8), np.empty(0, centroids.numpy().dtype)
        )
        layout = _Layout(_build_lists(np.empty(0, np.int64), nothing, lists, _NEWEST), oldest, oldest)
        index = cls(recall, keys.count, torch.cat((centroids, deviations[:, None]), 1), quantizer, layout)
        index._lay_out(keys, index._encode(keys, oldest))
        return index

    @classmethod
    def resume(cls, recall: float, tensors: Mapping[str, Tensor], dim: int, blocks: int) -> "_HeadIVF":
        """Restores the state that `tensors` gave, of keys of `dim` and at most so many blocks; raises ValueError."""
        built, listed, end = counts_of(tensors, (3,), blocks)
        shapes = (-1, LANES), (-1, CODES, LANES), (-1, LANES), (-1,)
        lists = from_tensors(InvertedLists, tensors, shapes)
        _check_lists(lists, listed, end)
        weighed = tensors.get("weighed", torch.empty(0))
        if list(weighed.shape) != [len(lists.starts) - 2, dim + 1] or not weighed.is_floating_point():
            raise ValueError(f"the saved state of the index has centroids {list(weighed.shape)}")
        quantizer = from_tensors(Quantizer, tensors, ((dim,), (dim, dim), (dim, dim), (CODES,), (2,)))
        return cls(recall, built, weighed, quantizer, _Layout(lists, listed, end))

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name, for `resume`."""
        lists, listed, end = self._layout
        return {
            **to_tensors(self._quantizer),
            **to_tensors(lists),
            "weighed": self._coarse_quantizer,
            "counts": torch.tensor([self.built, listed, end]),
        }

    def update(self, keys: _HeadKeys) -> None:
        """Adds the blocks appended since the last update."""
        layout = self._layout
        if keys.count == layout.end:
            return
        new = self._encode(keys, max(layout.end, keys.oldest))
        if keys.count - layout.listed > _NEWEST:
            self._lay_out(keys, new)
        else:
            _add_newest(layout.lists, new, layout.listed)
            self._layout = layout._replace(end=keys.count)

    def search(
        self,
        keys: _HeadKeys,
        calibration: Calibration,
        query: Tensor,
        end: int,
        best: Tensor,
        found: Tensor,
        scored: Tensor,
    ) -> None:
        """Fills `best` and `found [R,k]` with scores and numbers of the best blocks before `end` for `query [R,D]`.

        Where there are fewer, -inf and -1. `scored [R]` becomes the number of keys scored in full. `calibration` gives
        nprobe and the cosine, and is updated by these queries.
        """
        calibration.reset_unless_of(self.built, self._layout.listed)
        share, k = (1 + self._recall) / 2, best.shape[1]
        nprobe, cosine = calibration.quantiles(share, len(self._centroids))
        audited = calibration.audits(len(query))
        if calibration.ready and len(audited):
            ranks, cosines = self._needed(keys, query[audited], end, k)
            missed = sum(rank >= nprobe or needed > cosine for rank, needed in zip(ranks, cosines, strict=True))
            if calibration.drifted(missed, len(ranks), self._recall):
                calibration.reset()  # only then: as long as it holds, results depend on no other queries
        if not calibration.ready:
            some = min(len(query), _CALIBRATED)
            calibration.add(*self._needed(keys, query[torch.arange(some) * len(query) // some], end, k))
            nprobe, cosine = calibration.quantiles(share, len(self._centroids))
        for start in range(0, len(query), _QUERY_BATCH):
            some = slice(start, start + _QUERY_BATCH)
            self._probe(keys, end, nprobe, cosine, query[some], best[some], found[some], scored[some])

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted lists and of the coarse quantizer."""
        return sum(array.nbytes for array in self._layout.lists) + self._coarse_quantizer.nbytes

    def _list_scores(self, query: Tensor) -> Tensor:
        """Estimate of the best score of each query in each list, `[R,lists]`."""
        return torch.cat((query, torch.linalg.vector_norm(query, dim=1, keepdim=True)), 1) @ self._coarse_quantizer.T

    def _needed(self, keys: _HeadKeys, query: Tensor, end: int, k: int) -> tuple[list[float], list[float]]:
        """What finding the best blocks of `query [R,D]` takes: the ranks of their lists, and cosines of residuals."""
        best = query.new_full((len(query), k), -torch.inf)
        found = torch.full(best.shape, -1)
        self._probe(keys, end, len(self._centroids), 1.0, query, best, found, torch.empty(len(query), dtype=torch.long))
        of_query, column = (found >= 0).nonzero(as_tuple=True)
        numbers = found[of_query, column]
        own, list_scores = keys.at(numbers).to(query.dtype), self._list_scores(query)[of_query]
        own_list = nearest_centroids(own, self._centroids)[:, None]
        ranks = (list_scores > list_scores.gather(1, own_list)).sum(1)
        ranks = torch.where(numbers < self._layout.listed, ranks, 0)  # the list of the newest is always probed
        mean, key_basis, query_basis, *_ = self._quantizer
        key_residuals = (own.double().numpy() - mean) @ key_basis[CODES:].T
        query_residuals = query[of_query].double().numpy() @ query_basis[CODES:].T
        norms = np.linalg.norm(key_residuals, axis=1) * np.linalg.norm(query_residuals, axis=1)
        cosines = (key_residuals * query_residuals).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
        return ranks.tolist(), cosines.tolist()

    def _probe(
        self, keys: _HeadKeys, end: int, nprobe: int, cosine: float, query: Tensor, best: Tensor, found: Tensor,
        scored: Tensor,
    ) -> None:  # fmt: skip
        """Fills `best`, `found` and `scored` from the newest blocks and the `nprobe` best lists of each query."""
        list_scores = self._list_scores(query).numpy()
        first = min(_FIRST_PROBES, nprobe)
        limits = np.stack([_kth_highest(list_scores, nprobe), _kth_highest(list_scores, first)], 1)
        block_range = np.array((keys.oldest, min(end, keys.count)))
        arrays = [x.numpy() for x in (query, best, found, scored)]
        modulus = keys.buffer.blocks.modulus
        inputs = (
            *keys.arrays(), self._quantizer, self._layout.lists, block_range, list_scores, limits, *arrays, modulus,
        )  # fmt: skip
        in_parts(lambda start, stop: probe_lists(*inputs, cosine, start, stop), len(query), size=nprobe * LANES)

    def _encode(self, keys: _HeadKeys, start: int) -> _EncodedBlocks:
        """Codes of the blocks from number `start` on."""
        numbers = np.arange(start, keys.count, dtype=np.int32)
        codes = np.empty((len(numbers), CODES, 1), np.int8)
        residual_norms = np.empty((len(numbers), 1), self._centroids.numpy().dtype)
        mean, key_basis, _, steps, max_norms = self._quantizer
        for begin in range(0, len(numbers), _ENCODE_BATCH):
            some = slice(begin, begin + _ENCODE_BATCH)
            own = keys.at(torch.from_numpy(numbers[some]).long()).numpy()
            count = len(own)
            encode(own, None, mean, key_basis, steps, codes[some], residual_norms[some], max_norms, count, 0, count)
        return _EncodedBlocks(numbers, codes[..., 0], residual_norms[..., 0])

    def _lay_out(self, keys: _HeadKeys, new: _EncodedBlocks) -> None:
        """Puts all blocks, `new` ones and the newest included, into the lists of their nearest centroids."""
        lists = len(self._centroids)
        list_of, blocks = _listed_blocks(self._layout.lists, keys.oldest)
        list_of, blocks = np.append(list_of, np.full(len(new.numbers), lists)), blocks.and_then(new)
        newest = list_of == lists
        parts = torch.from_numpy(blocks.numbers[newest]).long().split(_ENCODE_BATCH)
        nearest = [nearest_centroids(keys.at(some).to(self._centroids.dtype), self._centroids) for some in parts]
        list_of[newest] = torch.cat(nearest).numpy()
        self._layout = _Layout(_build_lists(list_of, blocks, lists, _NEWEST), keys.count, keys.count)


def _kth_highest(values: Array, k: int) -> Array:
    """The k-th highest in each row of `values [R,n]`."""
    index = values.shape[1] - k
    return np.partition(values, index, axis=1)[:, index]


# The index of all rows and heads


class IVF:
    """IVF index for every row and key-value head of a `KeyBuffer`, for a recall."""

    def __init__(self, rows: int, recall: float) -> None:
        self._recall = recall
        self._heads: list[list[_HeadIVF]] = [[] for _ in range(rows)]
        self._calibrations: list[list[Calibration]] = [[] for _ in range(rows)]

    def search(self, keys: KeyBuffer, query: Tensor, k: int, upto: list[int]) -> tuple[Array, Array, Array]:
        """Scores and block numbers `[B,H,T,k]` as of `Index.search`, and the number of keys scored `[B,H,T]`."""
        query = query.contiguous()
        best = query.new_full((*query.shape[:3], k), -torch.inf)
        found, scored = torch.full(best.shape, -1), torch.zeros(best.shape[:3], dtype=torch.long)
        for row, end in enumerate(upto):
            heads = self._up_to_date(keys, row, query[row])
            for head, index in enumerate(heads):
                group = query.shape[1] // len(heads)
                some = slice(head * group, (head + 1) * group)
                # The heads of a group lie side by side, so that these are views to write to.
                queries, *out = (x[row, some].flatten(0, 1) for x in (query, best, found, scored))
                index.search(_HeadKeys(keys, row, head), self._calibration(row, head), queries, end, *out)
        return best.numpy(), found.numpy(), scored.numpy()

    def reorder(self, rows: list[int]) -> None:
        """Makes row i what row `rows[i]` was."""
        if rows != list(range(len(self._heads))):
            self._heads = [copy.deepcopy(self._heads[row]) for row in rows]
            self._calibrations = [copy.deepcopy(self._calibrations[row]) for row in rows]

    def view(self) -> "IVF":
        """The same lists, with a calibration of its own from here on."""
        other = copy.copy(self)
        other._calibrations = copy.deepcopy(self._calibrations)
        return other

    def _calibration(self, row: int, head: int) -> Calibration:
        known = self._calibrations[row]
        known += [Calibration() for _ in range(head + 1 - len(known))]
        return known[head]

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name, for `resume`."""
        return {
            f"{row}.{head}.{name}": tensor
            for row, heads in enumerate(self._heads)
            for head, index in enumerate(heads)
            for name, tensor in (index.tensors() | self._calibration(row, head).tensors()).items()
        }

    def resume(self, tensors: Mapping[str, Tensor], keys: KeyBuffer) -> None:
        """Restores the state of an index of some of the first of `keys`; ValueError if it has none for them."""
        rows, count, dim = keys.shape
        heads: dict[str, dict[str, Tensor]] = {f"{row}.{head}": {} for row in range(rows) for head in range(count)}
        for name, tensor in tensors.items():
            place, _, own = name.rpartition(".")
            if place not in heads:
                raise ValueError(f"the saved state of the index has {name!r}, and there are {count} heads")
            heads[place][own] = tensor
        for place, own in heads.items():
            row = int(place.split(".")[0])
            self._heads[row].append(_HeadIVF.resume(self._recall, own, dim, keys.blocks.counts[row]))
            self._calibrations[row].append(Calibration.resume(own))

    @property
    def nbytes(self) -> int:
        """Bytes of the indexes of all heads."""
        return sum(index.nbytes for heads in self._heads for index in heads)

    def _up_to_date(self, keys: KeyBuffer, row: int, query: Tensor) -> list[_HeadIVF]:
        """The indexes of a row with all blocks; those that are due are built anew, for queries like `query [H,T,D]`."""
        count, heads = keys.blocks.counts[row], self._heads[row]
        if count and (not heads or count >= _REBUILD_GROWTH * heads[0].built):
            groups = query.chunk(keys.arrays()[0].shape[1])
            heads = [
                _HeadIVF.build(_HeadKeys(keys, row, head), own.flatten(0, 1), self._recall)
                for head, own in enumerate(groups)
            ]
            self._heads[row] = heads
        for head, index in enumerate(heads):
            index.update(_HeadKeys(keys, row, head))
        return heads
