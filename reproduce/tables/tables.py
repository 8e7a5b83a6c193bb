"""The tables of the report: whose rows they hold, in which columns, beside which numbers of the paper."""

from dataclasses import dataclass
from typing import Any

from landmark.report import cells, names, paper
from landmark.report.cells import Column
from landmark.report.paper import Row
from landmark.report.results import Line, Results
from landmark.report.words import NONE, NOT_MEASURED, number, share, word

PERPLEXITY = cells.perplexities("perplexity")
KEYS = cells.means("keys attended", "attended", lambda value: f"{value:,.0f}")


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
        "Perplexity by the length read; the paper's table 1.",
        ("method", "read_length", "local", "cache", "blocks", "top_k"),
        (cells.perplexities("books", names.BOOKS), cells.perplexities("math", names.MATH), KEYS),
        (
            *paper.LANGUAGE_MODELING[:3],  # of 512 tokens
            Row(paper.landmark(512, 4)),
            Row(paper.transformer_xl(512)),
            *paper.LANGUAGE_MODELING[3:],
            *(
                row
                for method in (names.SINKS, names.MEMORIZING)
                for length in (2048, 4096)
                for row in _methods(method, read_length=length)
            ),
        ),
    ),
    Table(
        names.SELECTION,
        "Who chooses blocks",
        "Each token of each head, each head for a whole chunk, or each token for all heads; the paper's table 2.",
        ("corpus", "selection", "read_length", "top_k"),
        (PERPLEXITY,),
        paper.SELECTION,
    ),
    Table(
        names.TOP_K,
        "How many blocks are opened",
        "",
        ("corpus", "method", "read_length", "top_k"),
        (PERPLEXITY, KEYS),
        tuple(Row({"corpus": names.BOOKS, "top_k": top_k}) for top_k in (1, 2, 4, 8, 16)),
    ),
    Table(
        names.BLOCK_SIZE,
        "How long blocks are",
        "",
        ("corpus", "method", "read_length", "block_size", "local", "top_k"),
        (PERPLEXITY, KEYS),
        tuple(Row({"corpus": names.BOOKS, "block_size": size}) for size in (15, 31, 50, 63, 127)),
    ),
    Table(
        names.MISS_GATE,
        "Skipped retrievals",
        "Below the threshold on the miss gate nothing is fetched; the paper's appendix D. More perplexity: than "
        "landmark attention without a miss gate.",
        ("corpus", "method", "threshold", "read_length"),
        (cells.means("skipped", "skipped", share), PERPLEXITY, Column("more perplexity", cells.more_perplexity)),
        paper.MISS_GATE,
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
        ("corpus", "method", "block_dropout", "read_length", "top_k"),
        (PERPLEXITY,),
        _methods(names.LANDMARK, names.WITH_BLOCK_DROPOUT, corpus=names.BOOKS),
    ),
    Table(
        names.TRAINING_MEMORY,
        "Memory in training",
        "Training with retrieval from memory, and retrieval together with a recurrent window.",
        ("corpus", "method", "read_length", "local", "local_blocks", "top_k"),
        (PERPLEXITY, KEYS),
        _methods(names.LANDMARK, names.WITH_MEMORY, names.WITH_RECURRENCE, corpus=names.BOOKS),
    ),
    Table(
        names.PASS_KEY,
        "Pass keys",
        "Share of keys found, over all depths; the paper's section 4.2.",
        ("method", "model", "window", "read_length"),
        (
            cells.accuracies("accuracy"),
            Column("prompts", cells.prompts),
            Column("lowest", cells.lowest_depth),
        ),
        (
            *(Row({"method": names.LANDMARK, "read_length": paper.WINDOW * times}) for times in (1, 4, 16)),
            paper.PASS_KEY,
            *_methods(names.ANCESTOR, names.SINKS, names.TRANSFORMER_XL, names.MEMORIZING),
        ),
    ),
    Table(
        names.CONVERSION,
        "Conversion",
        "What a pretrained model learns while it is trained to use landmarks.",
        ("method", "model", "tokens_trained"),
        (
            cells.lengths("tokens read", "perplexity"),
            PERPLEXITY,
            cells.lengths("tokens searched", "accuracy"),
            cells.accuracies("pass keys"),
        ),
        _methods(names.ANCESTOR, names.LANDMARK),
    ),
    Table(
        names.THROUGHPUT,
        "Training speed",
        "Training on windows of the length read. Ratio: to the speed of full attention at that length.",
        ("machine", "method", "read_length"),
        (
            cells.means("tokens/s", "tokens_per_second", lambda value: f"{value:,.0f}"),
            Column("ratio", cells.speed_ratio),
            cells.means("memory, MB", "memory_mb", lambda value: f"{value:,.0f}"),
        ),
        _methods(names.FULL, names.LANDMARK, names.TRANSFORMER_XL),
    ),
)


def markdown(table: Table, results: Results) -> str:
    """The table in Markdown. Whatever is not measured says so."""
    paper_headings = list(dict.fromkeys(heading for row in table.rows for heading in row.paper))
    head = [
        *map(word, table.settings),
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
