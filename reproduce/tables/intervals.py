"""95 % confidence intervals of means over seeds, and of one seed's windows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

from landmark.evaluation.samples import CONFIDENCE


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval, infinite where nothing is known of it."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def known(self) -> bool:
        return math.isfinite(self.high)

    def map(self, rising: Callable[[float], float]) -> "Interval":
        """The same of a rising function of the value."""
        return Interval(rising(self.value), rising(self.low), rising(self.high), self.seeds)


def over_seeds(values: Sequence[float], error: float | None, samples: int) -> Interval:
    """The mean of one value a seed, with Student's interval of their scatter.

    The scatter of a single seed is unknown; its interval is that of `error`, the standard error of a mean of `samples`.
    """
    mean, seeds = fmean(values), len(values)
    if seeds > 1:
        half = student_t(seeds - 1) * stdev(values) / math.sqrt(seeds)
    elif error is not None and samples > 1:
        half = student_t(samples - 1) * error
    else:
        half = math.inf
    return Interval(mean, mean - half, mean + half, seeds)


@cache
def student_t(freedom: int) -> float:
    """The t that Student's distribution of `freedom` degrees stays within, on both sides, with 95 % probability."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings: the 53 bits of a float and some more
        middle = (low + high) / 2
        if _within(middle, freedom) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(high)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= t) where tan(angle) = t / sqrt(freedom): the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for n in range(3 if odd else 2, freedom - 1, 2):
        term *= (n - 1) / n * cosine * cosine
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
