"""Groups of keys that are alike, by k-means, and the mean and spread of each."""

import torch
from torch import Tensor

_ROUNDS = 6
_TOGETHER = 1 << 21  # products of keys and means computed at once


def means_of(keys: Tensor, count: int) -> Tensor:
    """Means `[count,D]` of groups of `keys [n,D]`, each the nearest to the keys of its group; n is `count` or more.

    The same keys give the same means. A group that loses all its keys keeps its mean.
    """
    means = keys[torch.arange(count) * len(keys) // count].clone()
    for _ in range(_ROUNDS):
        totals, sizes = torch.zeros_like(means), keys.new_zeros(count, 1)
        for some in keys.split(max(1, _TOGETHER // count)):
            group = nearest(some, means)
            totals.index_add_(0, group, some)
            sizes.index_add_(0, group, sizes.new_ones(len(some), 1))
        means = torch.where(sizes > 0, totals / sizes.clamp(min=1), means)
    return means


def nearest(keys: Tensor, means: Tensor) -> Tensor:
    """The nearest of `means [m,D]` to each of `keys [n,D]`, long [n]."""
    norms = means.square().sum(1) / 2
    parts = keys.split(max(1, _TOGETHER // len(means)))
    return torch.cat([torch.addmm(norms, part, means.T, beta=-1).argmax(1) for part in parts])


def spreads(keys: Tensor, means: Tensor) -> Tensor:
    """Root mean square of an entry of a key less its group's mean, [m]; 0 for groups without keys."""
    group = nearest(keys, means)
    squares = (keys - means[group]).square().mean(1)
    sizes = torch.bincount(group, minlength=len(means))
    return (keys.new_zeros(len(means)).index_add_(0, group, squares) / sizes.clamp(min=1)).sqrt()
