"""Samples of evaluations that ask: depths, shares with their intervals, and the log from which a run resumes."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Generic, Protocol, TypeVar

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
        """What tells the sample from all others of a log."""
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

    Its first line holds the `settings` of the evaluation, which must determine every answer; each further line holds a
    sample, an object of `kind`. An incomplete last line is dropped, and its sample is asked again. Raises ValueError if
    the file holds samples of other settings (naming the difference) or something else, and leaves it unchanged.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], kind: type[S]) -> None:
        self.path = Path(path)
        self.kind = kind
        self.samples: dict[tuple[Any, ...], S] = {}
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder {self.path.parent} does not exist: make it, or choose another file")
        data = self.path.read_bytes() if self.path.exists() else b""
        header = (json.dumps(settings) + "\n").encode()
        if header.startswith(data):  # new, empty, or incomplete in its first line
            self.path.write_bytes(header)
            return
        finished = data[: data.rfind(b"\n") + 1]
        first, *rest = self._lines(finished)
        for name in {**settings, **first}:
            if name not in first:
                raise ValueError(
                    f"{path} does not record the {name} it was made with, like logs of earlier releases:"
                    " choose another file or delete it"
                )
            if first.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} was made with another {name} ({first.get(name)!r}, now {settings.get(name)!r}):"
                    " choose another file or delete it"
                )
        for line in rest:
            sample = self._sample(line)
            self.samples[sample.place] = sample
        if finished != data:
            self.path.write_bytes(finished)

    def add(self, sample: S) -> None:
        """Appends a sample."""
        self.samples[sample.place] = sample
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample.to_dict()) + "\n")

    def _sample(self, line: dict[str, Any]) -> S:
        try:
            return self.kind(**line)
        except TypeError:
            raise ValueError(f"{self.path} is not a log of this evaluation: choose another file") from None

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"{self.path} is not a log of this evaluation: choose another file")
        return lines
