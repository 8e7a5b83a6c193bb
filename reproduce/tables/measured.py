"""Measurements aggregated by setting: means over seeds, pooled accuracies, differences between two settings."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from landmark.evaluation.samples import share_interval
from reproduce.tables.intervals import Interval, over_seeds
from reproduce.tables.names import NOT_MEASURED, heading, number
from reproduce.tables.results import KEY, Line, Results, matches


class Untested(Exception):
    """Why the measurements do not answer a question."""


def by_setting(lines: Sequence[Line], but: Sequence[str] = ("seed",)) -> list[list[Line]]:
    """Lines of the same key, but for the fields `but`, in order of their first lines; comparisons are left out."""
    return _by_key([line for line in lines if "against" not in line], but)


def differing(groups: Sequence[Sequence[Line]], but: Sequence[str] = ("seed",)) -> list[str]:
    """Key fields, but for those in `but`, that are not the same in all groups."""
    return [name for name in KEY if name not in but and len({line.get(name) for group in groups for line in group}) > 1]


def labels(groups: Sequence[Sequence[Line]], but: Sequence[str] = ("seed",)) -> list[str]:
    """The settings in which each group differs from the others, such as "k 4, steps 2,000"."""
    names = differing(groups, but)
    return [
        ", ".join(f"{heading(name)} {number(value)}" for name in names if (value := group[0].get(name)) is not None)
        for group in groups
    ]


def one_setting(lines: Sequence[Line], what: str, but: Sequence[str] = ("seed",)) -> list[Line]:
    """The lines, if they are of one setting; of several numbers of steps the largest. Raises Untested otherwise."""
    groups = by_setting(lines, but)
    if not groups:
        raise Untested(f"{what}: {NOT_MEASURED}")
    return _most_trained(groups, what, but)


def perplexity(lines: Sequence[Line]) -> Interval:
    """Over seeds, in nats a token and then raised: the mean is the geometric one."""
    return _over_seeds(
        {line["seed"]: (math.log(line["perplexity"]), line["se"], line["samples"]) for line in lines}
    ).map(math.exp)


def accuracy(lines: Sequence[Line]) -> Interval:
    """Of all prompts together. Its interval is that of the prompts, or of the seeds where that is wider.

    (Seeds that all answer everything scatter by nothing, which says little about a handful of prompts.)
    """
    by_seed: dict[int, list[Line]] = {}
    for line in lines:
        by_seed.setdefault(line["seed"], []).append(line)
    right = sum(line["accuracy"] * line["samples"] for line in lines)
    total = sum(line["samples"] for line in lines)
    low, high = share_interval(round(right), total)
    if len(by_seed) > 1:
        scatter = over_seeds([_share(own) for own in by_seed.values()], None, 0)
        low, high = max(min(low, scatter.low), 0.0), min(max(high, scatter.high), 1.0)
    return Interval(right / total, low, high, len(by_seed))


def mean(lines: Sequence[Line], name: str) -> float | None:
    """Over the lines that have the field; None if none has."""
    values = [line[name] for line in lines if line.get(name) is not None]
    return fmean(values) if values else None


def difference(results: Results, one: Line, other: Line) -> Interval:
    """Nats a token of the setting `one` above those of `other`, each given as fields to find; below 0 `one` is better.

    From the differences measured token by token where there are any, else from the measurements of the seeds that both
    have. Raises Untested where neither was measured, or only one of the two with toy step counts.
    """
    for own, against, sign in ((one, other, 1), (other, one, -1)):
        lines = [line for line in results.find(**own) if "against" in line and matches(_reference(line), against)]
        if lines:
            chosen = _most_trained(_by_key(lines, ("seed",)), f"{describe(own)} against {describe(against)}", ("seed",))
            return _over_seeds(
                {line["seed"]: (sign * line["difference"], line["difference_se"], line["samples"]) for line in chosen}
            )
    ones = {line["seed"]: line for line in one_setting(_perplexities(results, one), describe(one))}
    others = {line["seed"]: line for line in one_setting(_perplexities(results, other), describe(other))}
    common = [(line, others[seed]) for seed, line in ones.items() if seed in others]
    if not common:
        raise Untested(f"{describe(one)} and {describe(other)} have no seed in common")
    if any(bool(a.get("quick")) != bool(b.get("quick")) for a, b in common):
        raise Untested(f"only one of {describe(one)} and {describe(other)} was measured with --quick")
    return _over_seeds({a["seed"]: _between(a, b) for a, b in common})


def window_by_window(a: Line, b: Line) -> tuple[float, float | None, int]:
    """The mean difference `a - b` of two measurements of the same windows, its standard error and their number."""
    gaps = [one - other for one, other in zip(a["nll"], b["nll"], strict=True)]
    error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
    return fmean(gaps), error, len(gaps)


def describe(fields: Line, beside: Line | None = None) -> str:
    """A setting in a few words; `beside` another setting, only what differs from it."""
    known = beside or {}
    method = [fields["method"]] if fields["method"] != known.get("method") else []
    shown = [
        f"{heading(name)} {number(value)}"
        for name, value in fields.items()
        if name not in ("table", "corpus", "method") and value != known.get(name)
    ]
    return ", ".join(method + shown)


def _by_key(lines: Sequence[Line], but: Sequence[str]) -> list[list[Line]]:
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(line.get(name) for name in KEY if name not in but), []).append(line)
    return list(groups.values())


def _most_trained(groups: Sequence[list[Line]], what: str, but: Sequence[str]) -> list[Line]:
    most = max(group[0]["steps"] for group in groups)
    trained = [group for group in groups if group[0]["steps"] == most]
    if len(trained) > 1:
        raise Untested(f"{what}: measured with several values of {', '.join(map(heading, differing(trained, but)))}")
    return trained[0]


def _over_seeds(by_seed: dict[int, tuple[float, float | None, int]]) -> Interval:
    """Of a value, its standard error and its number of samples for each seed."""
    values, errors, samples = zip(*by_seed.values(), strict=True)
    return over_seeds(values, errors[0], samples[0])


def _share(lines: Sequence[Line]) -> float:
    return sum(line["accuracy"] * line["samples"] for line in lines) / sum(line["samples"] for line in lines)


def _perplexities(results: Results, setting: Line) -> list[Line]:
    return [line for line in results.find(**setting) if "perplexity" in line]


def _reference(line: Line) -> Line:
    """The setting that a comparison compares with: its own, but for the fields `against` and `against_...`."""
    changed = {name.removeprefix("against_"): value for name, value in line.items() if name.startswith("against_")}
    return {**line, **changed, "method": line["against"]}


def _between(a: Line, b: Line) -> tuple[float, float | None, int]:
    """The difference of two perplexities, its error and windows: window by window where both kept theirs (`nll`).

    Otherwise as if their windows had nothing in common: the error is on the high side.
    """
    if "nll" in a and "nll" in b:
        return window_by_window(a, b)
    error = None if None in (a["se"], b["se"]) else math.hypot(a["se"], b["se"])
    return math.log(a["perplexity"] / b["perplexity"]), error, min(a["samples"], b["samples"])
