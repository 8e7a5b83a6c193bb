"""Calibration of an IVF index for a recall: how many lists to probe, and how tight a bound on codes is enough.

Some queries are searched exhaustively. What it would have taken to find their best blocks is an empirical distribution,
and its quantile is enough for queries to come, if these are like those (the rule of conformal prediction).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_ENOUGH = 64  # best blocks from which a quantile is taken
# One in so many queries is audited, that is searched exhaustively to check that the calibration still holds: one in
# _MIN_INTERVAL at first, and again after more was missed than is usual.
_MAX_INTERVAL, _MIN_INTERVAL = 4096, 64
_WINDOW = 64  # about so many of the latest audited blocks count
_DRIFT_DEVIATIONS = 2.5  # standard deviations by which more blocks may be missed than the recall allows


class Calibration:
    """What it took to find the best blocks of some queries, for one row and head and one state of its inverted lists.

    It changes only when the lists do, or when an audit shows that it no longer holds: until then equal queries find
    equal blocks. A branch has a calibration of its own, so that the queries of others do not change its results.
    """

    def __init__(self) -> None:
        self._state = (-1, -1)
        # Of the best blocks of some queries, sorted: the ranks of their lists, and the cosines of residuals.
        self._ranks: list[float] = []
        self._cosines: list[float] = []
        self._interval = self._next = _MIN_INTERVAL  # queries between two audits, and until the next one
        self._audited = self._missed = 0.0

    def reset_unless_of(self, built: int, listed: int) -> None:
        """Resets a calibration of other lists, which are identified by the block counts when built and laid out."""
        if self._state != (built, listed):
            self.reset()
            self._state = built, listed

    def reset(self) -> None:
        """Forgets all queries."""
        self._ranks, self._cosines = [], []
        self._interval = self._next = _MIN_INTERVAL
        self._audited = self._missed = 0.0

    @property
    def ready(self) -> bool:
        """Whether enough blocks are known to take quantiles."""
        return len(self._ranks) >= _ENOUGH

    def add(self, ranks: Sequence[float], cosines: Sequence[float]) -> None:
        """Adds the list ranks and residual cosines of the best blocks of some more queries."""
        self._ranks, self._cosines = sorted([*self._ranks, *ranks]), sorted([*self._cosines, *cosines])

    def quantiles(self, share: float, lists: int) -> tuple[int, float]:
        """nprobe, out of `lists`, and the residual cosine that are each enough for a `share` of the best blocks."""
        cosine = max(0.0, _conformal_quantile(self._cosines, share, 1.0))
        return 1 + int(_conformal_quantile(self._ranks, share, lists - 1)), cosine

    def audits(self, count: int) -> Tensor:
        """Which of the next `count` queries are audited, long [n]."""
        chosen = torch.arange(self._next, max(self._next, count), self._interval)
        self._next += len(chosen) * self._interval - count
        return chosen

    def drifted(self, missed: int, audited: int, recall: float) -> bool:
        """Counts the blocks missed out of those audited; returns whether they are too many for this recall."""
        if missed > _plausible_misses(audited, recall, 1.0):
            self._interval = max(_MIN_INTERVAL, self._interval // 4)
            self._next = min(self._next, self._interval)
        else:
            self._interval = min(_MAX_INTERVAL, self._interval * 2)
        if self._audited > _WINDOW:
            self._audited, self._missed = self._audited / 2, self._missed / 2
        self._audited, self._missed = self._audited + audited, self._missed + missed
        return self._missed > max(2.0, _plausible_misses(self._audited, recall, _DRIFT_DEVIATIONS))

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name, for `resume`."""
        watch = [*self._state, self._interval, self._next, self._audited, self._missed]
        values = {"ranks": self._ranks, "cosines": self._cosines, "watch": watch}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    @classmethod
    def resume(cls, tensors: Mapping[str, Tensor]) -> "Calibration":
        """Restores the state that `tensors` gave; ValueError if it is not that of a calibration."""
        numbers = [tensors.get(name, torch.empty(0)) for name in ("ranks", "cosines", "watch")]
        ranks, _, watch = map(list, (x.shape for x in numbers))
        finite = all(not x.is_complex() and bool(x.isfinite().all()) for x in numbers)
        if not finite or list(numbers[1].shape) != ranks or len(ranks) != 1 or watch not in ([0], [6]):
            raise ValueError("the saved state of the index has a calibration that cannot be")
        calibration = cls()
        calibration.add(tensors["ranks"].tolist(), tensors["cosines"].tolist())
        if "watch" in tensors:  # contexts of earlier releases have none, and are calibrated anew
            *whole, calibration._audited, calibration._missed = tensors["watch"].tolist()
            built, listed, calibration._interval, calibration._next = map(int, whole)
            calibration._state = built, listed
        return calibration


def _plausible_misses(audited: float, recall: float, deviations: float) -> float:
    """The mean number of blocks missed out of `audited` at this recall, and so many standard deviations on top."""
    mean = audited * (1 - recall)
    return mean + deviations * math.sqrt(mean * recall)


def _conformal_quantile(values: list[float], share: float, most: float) -> float:
    """The smallest of sorted `values` that covers a `share` of them and of one more; `most` if there is none."""
    index = math.ceil((len(values) + 1) * share) - 1
    return values[index] if index < len(values) else most
