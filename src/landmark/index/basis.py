"""Coordinates in which a few say most about the inner products of some keys and queries."""

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

_KEY_NOISE = 1e-4  # added to the second moments of keys in every direction, as a share of what they are


class Basis(NamedTuple):
    """A key k has coordinates `keys` (k - mean), a query q has `queries` q: q.k is q.mean plus their inner product."""

    mean: Array  # [D]
    keys: Array  # [D,D]
    queries: Array  # [D,D], the inverse of `keys`, transposed


def basis_for(keys: Array, queries: Array) -> Basis:
    """A basis for `keys [n,D]` and `queries [m,D]`, in float64.

    It makes the second moments of both one and the same diagonal matrix, largest entries first. Few queries say little
    of others to come: D more are thought of that favour no direction.
    """
    dim = keys.shape[1]
    mean = keys.mean(0, dtype=np.float64)
    of_keys = _second_moments(keys - mean, _KEY_NOISE * len(keys))
    of_queries = _second_moments(queries.astype(np.float64), dim)
    root = np.linalg.cholesky(of_keys)
    squares, axes = np.linalg.eigh(root.T @ of_queries @ root)
    scale = squares[::-1, None] ** 0.25
    turn = axes.T[::-1]
    inverse_root = np.linalg.inv(root)
    return Basis(mean, scale * (turn @ inverse_root), (turn @ root.T) / scale)


def _second_moments(x: Array, prior: float) -> Array:
    """Mean of x xᵀ over `x [n,D]` and `prior` more vectors of the same mean square without a direction."""
    dim = x.shape[1]
    total = x.T @ x
    level = np.trace(total) / (dim * len(x)) if len(x) else 0.0
    if not 0 < level < np.inf:  # nothing to go by: any basis will do
        return np.eye(dim)
    return (total + prior * level * np.eye(dim)) / (len(x) + prior)
