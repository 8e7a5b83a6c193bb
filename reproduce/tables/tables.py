"""Tables of the report: their rows, their columns, and the published numbers beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from reproduce.tables import names, published
from reproduce.tables.measured import Untested, accuracy, by_setting, labels, one_setting, perplexity
from reproduce.tables.names import NONE, NOT_MEASURED, number, perplexity_text, share, share_text
from reproduce.tables.published import Row
from reproduce.tables.results import Line, Results

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
    """The mean of a field, over the lines that have it."""

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
    """The text of the lines, or of each setting with its label: different settings are never averaged."""
    groups = by_setting(lines, but)
    texts = [text(group) for group in groups]
    if len(set(texts)) <= 1:
        return texts[0] if texts else nothing
    return "; ".join(f"{label}: {own}" for label, own in zip(labels(groups, but), texts, strict=True))


PERPLEXITY = perplexities("perplexity")
KEYS = (
    means("keys attended", "attended", lambda value: f"{value:,.0f}"),
    means("keys scored besides", "scored", lambda value: f"{value:,.0f}"),
    means("MFLOPs of attention", "attention_flops", lambda value: f"{value / 1e6:,.2f}"),
)


@dataclass(frozen=True)
class Table:
    """Lines of equal `settings` make a row. `rows` come first, and are there even if nothing was measured for them."""

    id: str
    title: str
    about: str
    settings: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def _methods(*methods: str, **settings: Any) -> tuple[Row, ...]:
    return tuple(Row({"method": method, **settings}) for method in methods)


TABLES = (
    Table(
        names.LANGUAGE_MODELING,
        "Language modeling",
        "Perplexity by the length read; the paper's table 1. Keys and FLOPs are of a token on average: landmarks stand "
        "beside the keys attended to, as do keys that a token scores only to choose among them; FLOPs are those of "
        "queries, keys and values in all layers.",
        ("method", "read_length", "local", "cache", "blocks", "retrieve"),
        (perplexities("books", names.BOOKS), perplexities("math, one book", names.MATH), *KEYS),
        (
            *published.LANGUAGE_MODELING[:3],  # of 512 tokens
            Row(published.landmark(512, 4)),
            Row(published.transformer_xl(512)),
            *published.LANGUAGE_MODELING[3:],
            *(
                row
                for method in (names.SINKS, names.MEMORIZING)
                for length in (2048, 4096)
                for row in _methods(method, read_length=length)
            ),
        ),
    ),
    Table(
        names.CONTROLS,
        "Controls",
        "What an advantage over full attention, or by length, may come from. Within the first block of a window, "
        "positions 1 to 49, landmark attention is causal attention: an advantage there is no retrieval. Window: of "
        "training. Landmarks as plain tokens: trained and read with causal attention to the same stream. All rows of a "
        "method are of one model a seed.",
        ("corpus", "method", "window", "read_length", "local", "blocks", "retrieve", "targets"),
        (PERPLEXITY, *KEYS),
        (
            *(
                Row({"corpus": corpus, "targets": None, **published.landmark(length, retrieve)})
                for corpus in names.CORPORA
                for length in (512, 2048, 4096)
                for retrieve in (0, 4)
            ),
            *(
                Row({"corpus": names.BOOKS, "read_length": 512, "targets": targets, **method})
                for targets in (names.FIRST_BLOCK, names.BEHIND_IT)
                for method in (
                    {"method": names.LANDMARK, "retrieve": 0},
                    {"method": names.LANDMARK, "retrieve": 2},
                    *({"method": names.FULL, "window": window} for window in (512, 128, 64)),
                    {"method": names.PLAIN_TOKENS},
                )
            ),
        ),
    ),
    Table(
        names.SELECTION,
        "Block selection",
        "Blocks are chosen by each token of each head, by each head for a whole chunk, or by each token for all heads; "
        "the paper's table 2. With per_head, tokens choose together with later ones of their chunk: these rows look "
        "ahead.",
        ("corpus", "selection", "read_length", "retrieve"),
        (PERPLEXITY,),
        published.SELECTION,
    ),
    Table(
        names.RETRIEVE,
        "Blocks opened per query",
        "",
        ("corpus", "method", "read_length", "retrieve"),
        (PERPLEXITY, *KEYS),
        tuple(Row({"corpus": names.BOOKS, "retrieve": retrieve}) for retrieve in (1, 2, 4, 8, 16)),
    ),
    Table(
        names.BLOCK_SIZE,
        "Block size",
        "",
        ("corpus", "method", "read_length", "block_size", "local", "retrieve"),
        (PERPLEXITY, *KEYS),
        tuple(Row({"corpus": names.BOOKS, "block_size": size}) for size in (15, 31, 50, 63, 127)),
    ),
    Table(
        names.MISS_GATE,
        "Skipped retrievals: a threshold on a gate that was not trained for it",
        "Below the threshold nothing is fetched; the paper's appendix D. The gate is the attention's own weight of "
        "memory, not trained to skip. More perplexity: than "
        "landmark attention without a miss gate.",
        ("corpus", "method", "threshold", "read_length"),
        (means("skipped", "skipped", share), PERPLEXITY, Column("more perplexity", more_perplexity)),
        published.MISS_GATE,
    ),
    Table(
        names.POSITIONS,
        "Stingy and true positions",
        "Retrieved blocks read in slots, or where they stood in the text; with and without random jumps of position "
        "after landmarks in training (the paper's appendix E).",
        ("corpus", "method", "positions", "read_length"),
        (PERPLEXITY,),
        tuple(
            Row({"corpus": names.BOOKS, "method": method, "positions": positions})
            for method in (names.LANDMARK, names.WITH_JUMPS)
            for positions in ("stingy", "true")
        ),
    ),
    Table(
        names.BLOCK_DROPOUT,
        "Block dropout in training",
        "",
        ("corpus", "method", "block_dropout", "read_length", "retrieve"),
        (PERPLEXITY,),
        _methods(names.LANDMARK, names.WITH_BLOCK_DROPOUT, corpus=names.BOOKS),
    ),
    Table(
        names.TRAINING_MEMORY,
        "Memory in training",
        "Training with retrieval from memory, and retrieval together with a recurrent window.",
        ("corpus", "method", "read_length", "local", "local_blocks", "retrieve"),
        (PERPLEXITY, *KEYS),
        _methods(names.LANDMARK, names.WITH_MEMORY, names.WITH_RECURRENCE, corpus=names.BOOKS),
    ),
    Table(
        names.PASSKEY,
        "Passkey retrieval",
        "Share of passkeys found, over all depths; the paper's section 4.2. The base model is what was converted. Of "
        "the others compare those of as many steps: fewer steps are fewer passkeys seen.",
        ("method", "model", "window", "read_length"),
        (
            accuracies("accuracy"),
            Column("prompts", prompts),
            Column("lowest", lowest_depth),
        ),
        (
            *(Row({"method": names.LANDMARK, "read_length": published.WINDOW * times}) for times in (1, 4, 16)),
            published.PASSKEY,
            *_methods(names.BASE_MODEL, names.FULL, names.SINKS, names.TRANSFORMER_XL, names.MEMORIZING),
        ),
    ),
    Table(
        names.CONVERSION,
        "Conversion",
        "A pretrained model converted and fine-tuned with landmarks, by tokens of training.",
        ("method", "model", "tokens_trained"),
        (
            lengths("tokens read", "perplexity"),
            PERPLEXITY,
            lengths("tokens searched", "accuracy"),
            accuracies("passkeys"),
        ),
        _methods(names.BASE_MODEL, names.LANDMARK),
    ),
    Table(
        names.THROUGHPUT,
        "Training speed",
        "Training on windows of the length read. Ratio: to the speed of full attention at that length.",
        ("machine", "method", "read_length"),
        (
            means("tokens/s", "tokens_per_second", lambda value: f"{value:,.0f}"),
            Column("ratio", speed_ratio),
            means("memory, MB", "memory_mb", lambda value: f"{value:,.0f}"),
        ),
        _methods(names.FULL, names.LANDMARK, names.TRANSFORMER_XL),
    ),
)


def markdown(table: Table, results: Results) -> str:
    """The table in Markdown. Cells without a measurement say so."""
    paper_headings = list(dict.fromkeys(heading for row in table.rows for heading in row.paper))
    head = [
        *map(names.heading, table.settings),
        *(column.heading for column in table.columns),
        *paper_headings,
        "seeds",
        "steps",
    ]
    lines = [head, ["---"] * len(head)]
    for row, measured in _rows(table, results):
        settings = measured[0] if measured else row.where
        lines.append(
            [
                *(number(settings.get(name)) for name in table.settings),
                *(_cell(column, results, measured) for column in table.columns),
                *(row.paper.get(heading, NONE) for heading in paper_headings),
                number(len({line["seed"] for line in measured}) or None),
                ", ".join(number(steps) for steps in sorted({line["steps"] for line in measured})) or NONE,
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(column: Column, results: Results, measured: list[Line]) -> str:
    return column.cell(results, measured) if measured else NOT_MEASURED


def _rows(table: Table, results: Results) -> list[tuple[Row, list[Line]]]:
    """Rows that the table expects, in its order, each as often as it was measured (or once); then all others."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in results.find(table=table.id, against=None):
        groups.setdefault(tuple(line.get(name) for name in table.settings), []).append(line)
    others = dict(sorted(groups.items(), key=lambda group: _order(group[0])))
    rows: list[tuple[Row, list[Line]]] = []
    for row in table.rows:
        found = [key for key in others if _stands_for(row, dict(zip(table.settings, key, strict=True)))]
        rows += [(row, others.pop(key)) for key in found] or [(row, [])]
    return rows + [(Row({}), lines) for lines in others.values()]


def _stands_for(row: Row, settings: dict[str, Any]) -> bool:
    return all(settings[name] == value for name, value in row.where.items())


def _order(key: tuple[Any, ...]) -> list[tuple[bool, bool, Any]]:
    """None first, numbers before texts."""
    return [(value is not None, isinstance(value, str), value) for value in key]
