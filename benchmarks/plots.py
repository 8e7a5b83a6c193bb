"""Plots of comparisons: one line for each method over length, both axes logarithmic."""

from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

Row = dict[str, Any]

DOTTED = "(dotted: roofline)"

# Baselines are grey.
COLOURS = {
    "blockwise": "tab:blue",
    "fused": "tab:red",
    "reference": "tab:purple",
    "memory": "tab:red",
    "no memory": "tab:blue",
    "sdpa": "black",
    "full": "black",
    "growing": "darkgrey",
    "cudnn": "dimgrey",
    "plain": "grey",
    "dense": "grey",
    "flex": "darkgrey",
    "exact": "black",
    "hierarchical": "tab:red",
    "faiss_flat": "grey",
    "faiss_ivf": "tab:blue",
    "faiss_hnsw": "tab:purple",
}


def panels(lines: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `lines` by `columns` axes, drawn without a window system."""
    figure = Figure(figsize=(1.5 + 5 * columns, 1 + 4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [list(line) for line in figure.subplots(lines, columns, squeeze=False)]


def grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Any, list[Row]]:
    """Rows by key, in their order."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def draw(rows: list[Row], path: Path) -> None:
    """Draws the rows of one benchmark (docs/performance.md) into `path`, .png or .svg."""
    bench = rows[0]["bench"]
    plot = {"ops": _draw_ops, "read": _draw_read, "decode": _draw_decode, "index": _draw_index}[bench]
    figure = plot(rows)
    first = rows[0]
    figure.suptitle(f"benchmarks {bench}: {first['machine']}, threads: {first['threads']}, {first['dtype']}")
    figure.savefig(path, dpi=150)


def _draw_ops(rows: list[Row]) -> Figure:
    families = grouped(rows, lambda row: _family(row))
    passes = list(grouped(rows, lambda row: row["pass"]))
    figure, grid = panels(len(families), len(passes))
    for line, (family, of_family) in zip(grid, families.items(), strict=True):
        by_pass = grouped(of_family, lambda row: row["pass"])
        for axes, name in zip(line, passes, strict=True):
            some = by_pass.get(name, [])
            _lines(axes, some, "length", _milliseconds)
            _rooflines(axes, some, "length")
            _label(
                axes, (row["length"] for row in some), f"{name}, {family}", "length, landmarks included", f"ms {DOTTED}"
            )
    return figure


def _draw_read(rows: list[Row]) -> Figure:
    figure, grid = panels(1, 1)
    axes = grid[0][0]
    _lines(axes, rows, "context", lambda row, name: row["tokens_per_s"] * row["median_s"] / row[f"{name}_s"])
    contexts = (row["context"] for row in rows)
    _label(axes, contexts, "reading a chunk of a long text", "ordinary tokens read before", "tokens/s")
    return figure


def _draw_decode(rows: list[Row]) -> Figure:
    batches = grouped(rows, lambda row: row["batch"])
    figure, grid = panels(1, len(batches))
    for axes, (batch, some) in zip(grid[0], batches.items(), strict=True):
        _lines(axes, some, "context", _milliseconds)
        _rooflines(axes, some, "context")
        contexts = (row["context"] for row in some)
        _label(axes, contexts, f"decoding, batch {batch}", "ordinary tokens in the context", f"ms a step {DOTTED}")
    return figure


def _draw_index(rows: list[Row]) -> Figure:
    by_queries = grouped(rows, lambda row: row["queries"])
    figure, grid = panels(1, len(by_queries))
    for axes, (queries, some) in zip(grid[0], by_queries.items(), strict=True):
        _lines(axes, some, "blocks", _milliseconds)
        title = "one query" if queries == 1 else f"{queries} queries at once"
        _label(axes, (row["blocks"] for row in some), title, "blocks", "ms a query")
    return figure


def _by_method(rows: list[Row], x: str) -> Iterable[tuple[str, list[Row]]]:
    """The measured rows of each method, from left to right."""
    measured = sorted((row for row in rows if row["skipped"] is None), key=lambda row: row[x])
    return grouped(measured, lambda row: row["method"]).items()


def _family(row: Row) -> str:
    heads = f"{row['heads']}" if row["heads"] == row["kv_heads"] else f"{row['heads']}/{row['kv_heads']}"
    return f"batch {row['batch']}, {heads} heads of {row['head_dim']}, block {row['block_size']}"


def _milliseconds(row: Row, name: str) -> float:
    return row[f"{name}_s"] * 1000


def _lines(axes: Axes, rows: list[Row], x: str, y: Callable[[Row, str], float]) -> None:
    """Medians, with bars from quartile to quartile."""
    for method, own in _by_method(rows, x):
        middle = [y(row, "median") for row in own]
        ends = [sorted((y(row, "lower_quartile"), y(row, "upper_quartile"))) for row in own]
        below = [value - low for value, (low, _) in zip(middle, ends, strict=True)]
        above = [high - value for value, (_, high) in zip(middle, ends, strict=True)]
        colour = _colour(method)
        measured = [row[x] for row in own]
        axes.errorbar(measured, middle, yerr=[below, above], label=method, color=colour, marker="o", capsize=3)


def _colour(method: str) -> str:
    kind, _, recall = method.partition("@")
    return "tab:orange" if recall else COLOURS[kind]


def _rooflines(axes: Axes, rows: list[Row], x: str) -> None:
    """What the machine would take for each method's work at full speed, dotted in the method's colour."""
    for method, own in _by_method(rows, x):
        bounds = [max(row["compute_bound_s"], row["memory_bound_s"]) * 1000 for row in own]
        axes.plot([row[x] for row in own], bounds, ":", color=_colour(method))


def _label(axes: Axes, measured: Iterable[int], title: str, x: str, y: str) -> None:
    """Titles, and ticks at the sizes `measured`."""
    ticks = sorted(set(measured))
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(visible=True, alpha=0.3)
    if axes.lines:
        axes.legend()
