"""The k best blocks by score, ties to the newest."""

import torch
from torch import Tensor

_GROUPED_FROM = 1024  # blocks; below, one topk over all is as fast
_GROUP = 16


def top_newest(scores: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of `scores [...,N]` and their `numbers` (long, same dims, broadcastable to scores).

    Among equal scores the highest number wins. Numbers stay below 2**30. Returns [...,k] each, in no order to
    rely on; where fewer than k scores are above -inf the rest is -inf with number -1.
    """
    if scores.shape[-1] < k:
        scores = torch.nn.functional.pad(scores, (0, k - scores.shape[-1]), value=-torch.inf)
        numbers = torch.nn.functional.pad(numbers, (0, k - numbers.shape[-1]), value=-1)
    values, places = _top_values(scores, min(k + 1, scores.shape[-1]))
    if scores.shape[-1] > k:
        # torch.topk breaks ties as it likes: that matters if the best one left out equals the last one in.
        last_in = values[..., k - 1]
        tied = (last_in == values[..., k]) & (last_in != -torch.inf)
        values, places = values[..., :k], places[..., :k]
        if bool(tied.any()):
            places[tied] = _newest_of_equals(scores[tied], numbers.expand_as(scores)[tied], last_in[tied], k)
            values = scores.gather(-1, places)
    chosen = numbers.expand_as(scores).gather(-1, places)
    return values, chosen.masked_fill_(values == -torch.inf, -1)


def _top_values(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk, by way of group maxima where there are many scores.

    The k groups with the highest maxima hold the k highest scores: each of them has a score at least as high
    as any score of another group.
    """
    length = scores.shape[-1]
    groups = length // _GROUP
    if length < _GROUPED_FROM or groups <= k:
        return scores.topk(k, dim=-1)
    # Group g is {g, g + groups, g + 2 * groups, ...}: maxima over rows of a matrix are the fast direction.
    matrix = scores[..., : groups * _GROUP].unflatten(-1, (_GROUP, groups))
    best = matrix.amax(-2).topk(k, dim=-1).indices
    members = torch.arange(0, groups * _GROUP, groups, device=scores.device)
    candidates = (best[..., None] + members).flatten(-2)
    left_over = torch.arange(groups * _GROUP, length, device=scores.device)
    candidates = torch.cat((candidates, left_over.expand(*candidates.shape[:-1], -1)), dim=-1)
    values, among = scores.gather(-1, candidates).topk(k, dim=-1)
    return values, candidates.gather(-1, among)


def _newest_of_equals(scores: Tensor, numbers: Tensor, last_in: Tensor, k: int) -> Tensor:
    """Places [R,k] of the k best in each row of `scores [R,N]` whose k-th best is `last_in [R]`."""
    numbers = numbers.int()
    rank = torch.where(scores == last_in[:, None], numbers, -1)
    rank = torch.where(scores > last_in[:, None], numbers + (1 << 30), rank)
    return rank.topk(k, dim=-1).indices
