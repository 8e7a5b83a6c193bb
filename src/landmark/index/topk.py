"""Top-k blocks by score, among equals the newest."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from landmark.index.keys import score as score_of
from landmark.ops.numba_loops import compiled
from landmark.ops.parallel import in_parts

_GROUPED_FROM = 1024  # blocks; below, one topk over all is as fast
_GROUP = 16
_NOTHING = torch.iinfo(torch.long).min  # packed, where there is no block
_RUN = 32  # scores that are skipped at once if none of them is high enough


class Rescoring(NamedTuple):
    """Arrays of the R queries and the keys by which scores `[...,N]` of a matrix product are computed again."""

    query: Any  # [R,D]
    keys: Any  # [G,S,D], as in `KeyBuffer.arrays`; queries share the G evenly
    scales: Any  # [G,S], quantization scales of the keys, or None
    first: int  # slot of the key of the first of the N scores
    tolerance: Any  # [R]: how far a score may be from that of `landmark.index.keys.score`


def top_newest(scores: Tensor, numbers: Tensor, k: int, rescoring: Rescoring | None = None) -> tuple[Tensor, Tensor]:
    """The k highest of `scores [...,N]` and their block `numbers` (long, same dims, broadcastable to scores).

    Among equal scores the highest number wins; entries with number -1 are left out. Numbers are below 2**30.
    Returns [...,k] each, in no guaranteed order; where there are fewer than k scores above -inf the rest is -inf
    with number -1. On other devices than a CPU scores are compared in float32.

    A matrix product rounds the score of a query and a key differently beside other keys. With `rescoring` (on a CPU, in
    float32 or float64) its scores only select candidates for the top k; these are scored again, each by itself.
    """
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return _selected(scores, numbers, k, rescoring)
    assert rescoring is None, "scores are computed again on a CPU only"
    return top_packed(scores, numbers, k)


def _selected(scores: Tensor, numbers: Tensor, k: int, rescoring: Rescoring | None) -> tuple[Tensor, Tensor]:
    """One pass over the scores that stops only at those that may be among the k best."""
    count = scores.shape[-1]
    if numbers.shape[1:-1].numel() == 1:
        labels = numbers.expand(*scores.shape[:1], *numbers.shape[1:])
    else:
        labels = numbers.expand_as(scores)
    best = scores.new_full((*scores.shape[:-1], k), -torch.inf)
    found = torch.full(best.shape, -1)
    rows = best.shape[:-1].numel()
    arrays = [x.reshape(-1, n).numpy() for x, n in ((scores, count), (labels, count), (best, k), (found, k))]
    if rows and count:
        in_parts(lambda start, stop: _select(*arrays, rescoring, start, stop), rows)
    return best, found


@compiled
def _select(scores: Any, labels: Any, best: Any, found: Any, rescoring: Any, start: int, stop: int) -> None:
    """Fills rows start..stop of `best` and `found [R,k]`, the highest first; rows share labels evenly."""
    sharing, count = scores.shape[0] // labels.shape[0], scores.shape[1]
    tops = np.empty((count + _RUN - 1) // _RUN, scores.dtype)
    bounded = False
    for row in range(start, stop):
        label = labels[row // sharing]
        if row == start or row % sharing == 0:
            # Entries without a block may have any score, and then the maxima of runs are no bounds.
            bounded = len(tops) > best.shape[1] and label.min() >= 0
        tolerance, group = 0.0, 0
        if rescoring is not None:
            tolerance = np.float64(rescoring.tolerance[row])
            group = row // (scores.shape[0] // rescoring.keys.shape[0])
        lowest = -np.inf
        if bounded:
            _highest_of_runs(scores[row], tops)
            lowest = _lowest_of_best(tops, best[row], found[row]) - 2 * tolerance
        for first in range(0, count, _RUN):
            if bounded and tops[first // _RUN] < lowest:
                continue
            for j in range(first, min(first + _RUN, count)):
                score, number = scores[row, j], label[j]
                if score >= lowest and score > -np.inf and number >= 0:
                    if rescoring is not None:
                        score = _rescored(
                            rescoring.query, row, rescoring.keys, rescoring.scales, group, rescoring.first + j
                        )
                    insert(best[row], found[row], score, number)
                    lowest = max(lowest, best[row, -1] - tolerance)


@compiled
def _rescored(query: Any, row: int, keys: Any, scales: Any, group: int, slot: int) -> Any:
    """The score of one query and one key, by the arrays of `Rescoring`."""
    return score_of(query, row, keys[group], None if scales is None else scales[group], slot)


@partial(compiled, without_nan=True)
def _highest_of_runs(scores: Any, tops: Any) -> None:
    """The highest score of each run."""
    for run in range(len(tops)):
        top = scores[run * _RUN]
        for j in range(run * _RUN, min((run + 1) * _RUN, len(scores))):
            top = scores[j] if scores[j] > top else top
        tops[run] = top


@compiled
def _lowest_of_best(values: Any, best: Any, found: Any) -> Any:
    """The k-th highest of values; the empty lists `best` and `found [k]` serve as scratch memory."""
    for value in values:
        if value > best[-1]:
            insert(best, found, value, -1)
    lowest = best[-1]
    best[:] = -np.inf
    return lowest


@compiled
def insert(best: Any, found: Any, score: Any, number: int) -> None:
    """Inserts a block into a sorted list of the best; the last one drops out."""
    rank = len(best)
    while rank > 0 and (score > best[rank - 1] or (score == best[rank - 1] and number > found[rank - 1])):
        rank -= 1
    for i in range(len(best) - 1, rank, -1):
        best[i], found[i] = best[i - 1], found[i - 1]
    if rank < len(best):
        best[rank], found[rank] = score, number


def top_packed(scores: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """By torch.topk over whole numbers that order scores and, among equals, block numbers.

    So no two are equal, and what is done depends on nothing that is found: the host waits for no device.
    """
    packed = torch.where((numbers >= 0) & (scores > -torch.inf), _ordered(scores) << 32 | numbers, _NOTHING)
    if packed.shape[-1] < k:
        packed = torch.nn.functional.pad(packed, (0, k - packed.shape[-1]), value=_NOTHING)
    best = _highest(packed, k)
    nothing = best == _NOTHING
    values = _bits(best >> 32).int().view(torch.float32).masked_fill(nothing, -torch.inf)
    return values.to(scores.dtype), (best & 0x3FFFFFFF).masked_fill_(nothing, -1)


def _ordered(scores: Tensor) -> Tensor:
    """Whole numbers of 32 bits, as long, in the order of `scores`, which are rounded to float32."""
    return _bits((scores.float() + 0.0).view(torch.int32).long())  # -0.0 becomes 0.0, which it equals


def _bits(x: Tensor) -> Tensor:
    """Turns bits of float32 into whole numbers of the same order, and back. Below 0 larger bits are smaller numbers."""
    return x ^ (x >> 31 & 0x7FFFFFFF)


def _highest(packed: Tensor, k: int) -> Tensor:
    """The k highest of `packed [...,N]`, by way of group maxima where there are many.

    The k groups with the highest maxima hold them: each of those is at least as high as any of another group.
    """
    length = packed.shape[-1]
    groups = length // _GROUP
    if length < _GROUPED_FROM or groups <= k:
        return packed.topk(k, dim=-1).values
    # Group g is {g, g + groups, g + 2 * groups, ...}: maxima over rows of a matrix are the fast direction.
    matrix = packed[..., : groups * _GROUP].unflatten(-1, (_GROUP, groups))
    best = matrix.amax(-2).topk(k, dim=-1).indices
    members = matrix.gather(-1, best[..., None, :].expand(*best.shape[:-1], _GROUP, k)).flatten(-2)
    return torch.cat((members, packed[..., groups * _GROUP :]), dim=-1).topk(k, dim=-1).values
