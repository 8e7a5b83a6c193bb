"""How far a search must look to find a share of the best, told by queries that were searched for in full."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_ENOUGH = 64  # best blocks of which it is known what it takes to find them
# One of so many queries is searched for in full, to see whether what is known still holds: one of fewer at first, and
# after more was missed than is usual.
_SELDOM, _OFTEN = 4096, 64
_WATCHED = 64  # of the best blocks of such queries, about so many of the latest count
_SURPRISE = 2.5  # standard deviations by which more may be missed than was asked for


class Evidence:
    """What it took to find the best blocks of some queries, of one row and head and one state of its lists.

    It changes only when its lists do, or when it holds no longer: until then equal queries find equal blocks. A branch
    has evidence of its own, so that what others ask changes nothing that it finds.
    """

    def __init__(self) -> None:
        self._of = (-1, -1)
        # Of the best blocks of some queries, in order: ranks of their lists, and cosines of what has no code.
        self._ranks: list[float] = []
        self._cosines: list[float] = []
        self._every = self._next = _OFTEN  # between queries that are searched for in full, and until the next one
        self._tried = self._missed = 0.0

    def is_of(self, made: int, listed: int) -> None:
        """Tells which lists it is of, by blocks that had come when they were made and laid out: others tell nothing."""
        if self._of != (made, listed):
            self.forget()
            self._of = made, listed

    def forget(self) -> None:
        """Knows nothing any more."""
        self._ranks, self._cosines = [], []
        self._every = self._next = _OFTEN
        self._tried = self._missed = 0.0

    @property
    def suffices(self) -> bool:
        return len(self._ranks) >= _ENOUGH

    def add(self, ranks: Sequence[float], cosines: Sequence[float]) -> None:
        """Remembers what the best blocks of some more queries took."""
        self._ranks, self._cosines = sorted([*self._ranks, *ranks]), sorted([*self._cosines, *cosines])

    def enough(self, share: float, lists: int) -> tuple[int, float]:
        """How many of the lists to look into, and what share of the codes' bound is enough for a `share` of blocks."""
        shrink = max(0.0, _enough(self._cosines, share, 1.0))
        return 1 + int(_enough(self._ranks, share, lists - 1)), shrink

    def to_try(self, count: int) -> Tensor:
        """Which of the next `count` queries are to be searched for in full."""
        chosen = torch.arange(self._next, max(self._next, count), self._every)
        self._next += len(chosen) * self._every - count
        return chosen

    def surprised_by(self, missed: int, tried: int, share: float) -> bool:
        """Counts blocks that would have been missed, of `tried`: whether a `share` of what is asked for is not held."""
        if missed > _likely_missed(tried, share, 1.0):
            self._every = max(_OFTEN, self._every // 4)
            self._next = min(self._next, self._every)
        else:
            self._every = min(_SELDOM, self._every * 2)
        if self._tried > _WATCHED:
            self._tried, self._missed = self._tried / 2, self._missed / 2
        self._tried, self._missed = self._tried + tried, self._missed + missed
        return self._missed > max(2.0, _likely_missed(self._tried, share, _SURPRISE))

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        watch = [*self._of, self._every, self._next, self._tried, self._missed]
        values = {"ranks": self._ranks, "cosines": self._cosines, "watch": watch}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    @classmethod
    def resume(cls, tensors: Mapping[str, Tensor]) -> "Evidence":
        """As it was when `tensors` gave it."""
        evidence = cls()
        evidence.add(tensors["ranks"].tolist(), tensors["cosines"].tolist())
        if "watch" in tensors:  # contexts of before have none: they learn anew
            *whole, evidence._tried, evidence._missed = tensors["watch"].tolist()
            made, listed, evidence._every, evidence._next = map(int, whole)
            evidence._of = made, listed
        return evidence


def _likely_missed(tried: float, share: float, deviations: float) -> float:
    """So many standard deviations more than the average of what is missed of `tried` blocks where `share` is found."""
    usual = tried * (1 - share)
    return usual + deviations * math.sqrt(usual * share)


def _enough(needed: list[float], share: float, most: float) -> float:
    """What was enough for `share` of those who `needed` so much, in order, and for one more; `most` if nothing was."""
    place = math.ceil((len(needed) + 1) * share) - 1
    return needed[place] if place < len(needed) else most
