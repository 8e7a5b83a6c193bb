"""What all plots begin with: a figure without a window system, and rows sorted into groups."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = dict[str, Any]


def panels(lines: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(1.5 + 5 * columns, 1 + 4 * lines), layout="constrained")
    FigureCanvasAgg(figure)  # no window system is ever asked
    return figure, [list(line) for line in figure.subplots(lines, columns, squeeze=False)]


def grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
