"""What stands in the columns of a table, from the lines of a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from landmark.report import names
from landmark.report.measured import Untested, accuracy, by_setting, labels, one_setting, perplexity
from landmark.report.results import Line, Results
from landmark.report.words import NONE, NOT_MEASURED, perplexity_text, share, share_text

OVER_DEPTHS = ("seed", "depth")


@dataclass(frozen=True)
class Column:
    """`cell(results, lines)`: the text for the `lines` of a row, of which there may be none."""

    heading: str
    cell: Callable[[Results, list[Line]], str]


def perplexities(heading: str, corpus: str | None = None) -> Column:
    """Of one corpus, or of whichever the row is about."""

    def cell(results: Results, lines: list[Line]) -> str:
        own = [line for line in lines if "perplexity" in line and corpus in (None, line.get("corpus"))]
        return each_setting(own, lambda group: perplexity_text(perplexity(group)))

    return Column(heading, cell)


def accuracies(heading: str) -> Column:
    def cell(results: Results, lines: list[Line]) -> str:
        own = [line for line in lines if "accuracy" in line]
        return each_setting(own, lambda group: share_text(accuracy(group)), but=OVER_DEPTHS)

    return Column(heading, cell)


def means(heading: str, field: str, form: Callable[[float], str]) -> Column:
    """Of a field that is told beside what was measured, over the lines that have it."""

    def cell(results: Results, lines: list[Line]) -> str:
        own = [line for line in lines if line.get(field) is not None]
        return each_setting(own, lambda group: form(fmean(line[field] for line in group)), nothing=NONE)

    return Column(heading, cell)


def lengths(heading: str, kind: str) -> Column:
    """The lengths read for what is of that kind, "perplexity" or "accuracy"."""

    def cell(results: Results, lines: list[Line]) -> str:
        return (
            ", ".join(f"{length:,}" for length in sorted({line["read_length"] for line in lines if kind in line}))
            or NONE
        )

    return Column(heading, cell)


def prompts(results: Results, lines: list[Line]) -> str:
    own = [line for line in lines if "accuracy" in line]
    return each_setting(own, lambda group: f"{sum(line['samples'] for line in group):,}", OVER_DEPTHS, NONE)


def lowest_depth(results: Results, lines: list[Line]) -> str:
    """The depth with the lowest accuracy, the first of them."""
    own = [line for line in lines if "accuracy" in line and line.get("depth") is not None]
    return each_setting(own, _lowest_depth, OVER_DEPTHS, NONE)


def _lowest_depth(lines: list[Line]) -> str:
    depths = sorted({line["depth"] for line in lines})
    shares = [accuracy([line for line in lines if line["depth"] == depth]).value for depth in depths]
    lowest = min(shares)
    return f"{share(lowest)} at depth {depths[shares.index(lowest)]:g}"


def more_perplexity(results: Results, lines: list[Line]) -> str:
    """Above landmark attention without a miss gate, for the same corpus and length."""
    own = [line for line in lines if "perplexity" in line]
    if not own:
        return NONE
    same = {name: own[0].get(name) for name in ("corpus", "read_length")}
    base = results.find(table=names.MISS_GATE, method=names.LANDMARK, **same)
    try:
        above = perplexity(one_setting(own, "")).value - perplexity(one_setting(base, "")).value
    except Untested:
        return NONE
    return f"{above:+.2f}"


def speed_ratio(results: Results, lines: list[Line]) -> str:
    """To plain full attention over windows of the same length on the same machine."""
    same = {name: lines[0].get(name) for name in ("read_length", "machine")}
    base = results.find(table=names.THROUGHPUT, method=names.FULL, **same)
    try:
        own, full = (fmean(line["tokens_per_second"] for line in one_setting(some, "")) for some in (lines, base))
    except (Untested, KeyError):  # or only its memory was measured
        return NONE
    return f"{own / full:.2f}"


def each_setting(
    lines: Sequence[Line],
    text: Callable[[list[Line]], str],
    but: Sequence[str] = ("seed",),
    nothing: str = NOT_MEASURED,
) -> str:
    """The text of the lines; where they are of several settings, of each, told apart. Nothing is averaged over them."""
    groups = by_setting(lines, but)
    texts = [text(group) for group in groups]
    if len(set(texts)) <= 1:
        return texts[0] if texts else nothing
    return "; ".join(f"{label}: {own}" for label, own in zip(labels(groups, but), texts, strict=True))
