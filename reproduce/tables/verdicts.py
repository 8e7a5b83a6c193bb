"""Claims and their verdicts: each verdict must be supported by a whole confidence interval."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reproduce.tables.intervals import Interval
from reproduce.tables.measured import Untested, describe, difference, mean, one_setting
from reproduce.tables.names import more_text
from reproduce.tables.results import Line, Results

HELD = "held"
FAILED = "did not hold"
NO_DIFFERENCE = "no difference"
UNDECIDED = "not decided"
UNTESTED = "not measured"
VERDICTS = (HELD, FAILED, NO_DIFFERENCE, UNDECIDED, UNTESTED)


@dataclass(frozen=True)
class Outcome:
    verdict: str
    figures: str


Check = Callable[[Results], Outcome]  # may raise Untested, with the reason


@dataclass(frozen=True)
class Claim:
    """A sentence about the measurements, and what judges it."""

    sentence: str
    check: Check

    def judge(self, results: Results) -> Outcome:
        return _outcome(self.check, results)


@dataclass(frozen=True)
class Comparison:
    """The perplexity of the setting `one` against that of `other`.

    It is at most the share `above` higher, or below the other where `above` is None.
    """

    one: Line
    other: Line
    above: float | None

    def __call__(self, results: Results) -> Outcome:
        found = difference(results, self.one, self.other)
        verdict = decide(found, math.log1p(self.above or 0))
        bound = "below 0 %" if self.above is None else f"at most {100 * self.above:+g} %"
        figures = f"{describe(self.one)} against {describe(self.other, self.one)}: {more_text(found.map(math.expm1))}"
        return Outcome(verdict, f"{figures}, claimed {bound}{'' if found.known else ': without an interval'}")


@dataclass(frozen=True)
class Joined:
    """Several checks; the first of `verdicts` that one of them gives is that of all."""

    checks: tuple[Check, ...]
    verdicts: tuple[str, ...]

    def __call__(self, results: Results) -> Outcome:
        outcomes = [_outcome(check, results) for check in self.checks]
        given = {outcome.verdict for outcome in outcomes}
        verdict = next(verdict for verdict in self.verdicts if verdict in given)
        return Outcome(verdict, "; ".join(dict.fromkeys(outcome.figures for outcome in outcomes)))


def within(one: Line, other: Line, share: float) -> Check:
    return Comparison(one, other, share)


def better(one: Line, other: Line) -> Check:
    return Comparison(one, other, None)


def all_of(*checks: Check) -> Check:
    """Each of the checks: the worst verdict is that of all."""
    return Joined(checks, (FAILED, UNTESTED, UNDECIDED, NO_DIFFERENCE, HELD))


def any_of(*checks: Check) -> Check:
    """One of the checks at least: the best verdict is that of all."""
    return Joined(checks, (HELD, NO_DIFFERENCE, UNDECIDED, UNTESTED, FAILED))


def fewer_keys(one: Line, other: Line) -> Check:
    """A token attends to fewer keys in the setting `one` than in `other`, on average."""

    def check(results: Results) -> Outcome:
        keys = [_attended(results, setting) for setting in (one, other)]
        figures = f"{keys[0]:,.0f} keys attended to, {other['method']} {keys[1]:,.0f}"
        return Outcome(HELD if keys[0] < keys[1] else FAILED, figures)

    return check


def decide(interval: Interval, most: float) -> str:
    """The verdict on the claim that a difference is at most so much (0 or more), judged by its whole interval.

    With zero inside, nothing differs: that is a null, whatever the claim allows.
    """
    if not interval.known:
        return UNTESTED
    if interval.low > most:
        return FAILED
    if interval.high > most and interval.low > 0:
        return UNDECIDED
    return NO_DIFFERENCE if interval.low <= 0 <= interval.high else HELD


def compared(check: Check) -> Iterator[tuple[Line, Line]]:
    """The pairs of settings whose difference the check asks for."""
    if isinstance(check, Comparison):
        yield check.one, check.other
    elif isinstance(check, Joined):
        for part in check.checks:
            yield from compared(part)


def _outcome(check: Check, results: Results) -> Outcome:
    try:
        return check(results)
    except Untested as reason:
        return Outcome(UNTESTED, str(reason))


def _attended(results: Results, setting: Line) -> float:
    lines = [line for line in results.find(**setting) if "perplexity" in line]
    keys = mean(one_setting(lines, describe(setting)), "attended")
    if keys is None:
        raise Untested(f"{describe(setting)}: keys attended to were not counted")
    return keys
