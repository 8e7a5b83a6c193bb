"""Heat maps of right answers, by task and length, and by depth and length; drawn by matplotlib."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landmark.evaluation.samples import DEPTH_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCH = 0.55  # of a cell
DARK = 0.6  # below this share, numbers are white


def check_can_draw(file: Path) -> None:
    """Raises ValueError where `draw` would, before there is anything to draw."""
    if find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'landmark-attention[view]'")
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in kinds:
        raise ValueError(f"plot is {file}: end its name in one of {', '.join(f'.{kind}' for kind in kinds)}")


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draws the rows of `summaries` to a file of any format that matplotlib writes.

    The left map has the share of right answers of each task, plain and as chat, at each length; the right one that of
    all tasks in each tenth of the text.
    """
    from matplotlib.figure import Figure

    lengths = sorted({row["length"] for row in rows})
    names = list(dict.fromkeys((row["task"], row["form"]) for row in rows))
    by_task, by_depth = np.full((len(names), len(lengths)), np.nan), np.full((DEPTH_BINS, len(lengths)), np.nan)
    for row in rows:
        by_task[names.index((row["task"], row["form"])), lengths.index(row["length"])] = row["right"]
    for place, length in enumerate(lengths):
        at_length = [row["by_depth"] for row in rows if row["length"] == length]
        for tenth in range(DEPTH_BINS):
            found = [shares[name] for shares in at_length for name in shares if name.startswith(f"0.{tenth}-")]
            by_depth[tenth, place] = np.mean(found) if found else np.nan
    size = (4 + 2 * INCH * len(lengths) + 2, 1.5 + INCH * max(len(names), DEPTH_BINS))
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2)
    _map(left, by_task, lengths, [f"{task}, {form}" for task, form in names])
    _map(right, by_depth, lengths, [f"{tenth / DEPTH_BINS:.1f}" for tenth in range(DEPTH_BINS)])
    right.set_ylabel("depth, all tasks")
    attention = rows[0]["attention"] + (f" after {rows[0]['rag']}" if rows[0].get("rag") else "")
    figure.suptitle(f"right answers, attention {attention}")
    figure.savefig(file)


def _map(axes: "Axes", shares: np.ndarray, lengths: Sequence[int], names: Sequence[str]) -> None:
    axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("tokens")
    for (y, x), share in np.ndenumerate(shares):
        if np.isfinite(share):
            axes.text(x, y, f"{share:.0%}", ha="center", va="center", color="white" if share < DARK else "black")
