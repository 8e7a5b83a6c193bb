"""Samples of evaluations that ask: depths, shares with their intervals, and their log."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Generic, Protocol, TypeVar

from landmark.evaluation.log import Log

CONFIDENCE = 0.95
DEPTH_BINS = 10


class Answered(Protocol):
    """A question that was answered."""

    @property
    def depth(self) -> float:
        """Where its answer is stated, from 0 at the start of the text to 1 at its end."""
        ...

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        ...

    @property
    def place(self) -> tuple[Any, ...]:
        """What identifies the sample in a log."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The arguments of the class, JSON-serializable."""
        ...


S = TypeVar("S", bound=Answered)


def depths(samples: int) -> list[float]:
    """Depths spread evenly from 0, the start of the text, to 1, its end; the middle for a single sample."""
    if samples < 1:
        raise ValueError(f"samples is {samples}: give 1 or more")
    return [index / (samples - 1) for index in range(samples)] if samples > 1 else [0.5]


def accuracy(samples: Sequence[Answered]) -> float:
    """Share of correct answers."""
    return sum(sample.correct for sample in samples) / len(samples)


def by_depth(samples: Sequence[S]) -> dict[str, float]:
    """Accuracy by tenth of the text that states the answer; `"0.1-0.2"` is from 0.1 to below 0.2."""
    bins: dict[int, list[S]] = {}
    for sample in samples:
        bins.setdefault(min(int(sample.depth * DEPTH_BINS), DEPTH_BINS - 1), []).append(sample)
    return {f"{tenth / DEPTH_BINS:.1f}-{(tenth + 1) / DEPTH_BINS:.1f}": accuracy(bins[tenth]) for tenth in sorted(bins)}


def share_interval(right: float, total: int) -> tuple[float, float]:
    """Wilson's score interval of the share `right / total`, at 95 % confidence."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = right / total, z * z / total
    half = z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    ends = [(share + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1)]
    return max(ends[0], 0.0), min(ends[1], 1.0)  # rounding may pass the ends by an ulp


def digest(what: Any) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Journal(Generic[S]):
    """The log of answered samples in the file `path`, so that an interrupted evaluation resumes.

    The `settings` of the evaluation must determine every answer; samples are objects of `kind`. Raises ValueError as
    `Log` does.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], kind: type[S]) -> None:
        self._log = Log(Path(path), settings, lambda line: kind(**line))
        self.samples = {sample.place: sample for sample in self._log.found}

    def add(self, sample: S) -> None:
        """Appends a sample."""
        self.samples[sample.place] = sample
        self._log.add(sample.to_dict())
