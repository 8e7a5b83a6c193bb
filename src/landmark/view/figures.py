"""A view as a figure: blocks against generated tokens, by the weight with which they were read."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landmark.files import written_whole
from landmark.view.gather import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 400  # of the map: neighbouring blocks share one, and it shows their sum
_LABELS = 60  # more tokens than this are numbered, not spelled


def heat_map(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Mean weight over layers and heads `[G, n]`, of n columns of blocks, and the first block of each and the end."""
    columns = min(_COLUMNS, view.block_count)
    edges = np.linspace(0, view.block_count, columns + 1).round().astype(int)
    opened = view.blocks >= 0
    token = np.broadcast_to(np.arange(len(view.tokens))[:, None, None, None], view.blocks.shape)[opened]
    column = np.searchsorted(edges, view.blocks[opened], side="right") - 1
    weights = np.zeros((len(view.tokens), columns))
    np.add.at(weights, (token, column), view.weights[opened])
    return weights / view.local[0].size, edges


def check_matplotlib() -> None:
    """Raises ValueError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ValueError("figures are drawn by matplotlib: pip install 'landmark-attention[view]'")


def draw(view: View) -> "Figure":
    """The figure; raises ValueError without matplotlib."""
    check_matplotlib()
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    weights, edges = heat_map(view)
    rows = len(view.tokens)
    figure = Figure(figsize=(7, min(12.0, 1.6 + 0.16 * max(rows, 8))), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(4, rows / 8)))
    positions = edges * view.block_size
    above.stairs(weights.mean(0), positions, fill=True, color="#b45309")
    above.set_ylabel("mean weight")
    # The root lets weak reads show beside strong ones; pixels inside a vector figure keep its file small.
    norm = PowerNorm(0.5, vmin=0, vmax=max(1e-9, weights.max()))
    mesh = below.pcolormesh(positions, np.arange(rows + 1), weights, cmap="Oranges", norm=norm, rasterized=True)
    below.invert_yaxis()
    below.xaxis.set_major_formatter("{x:,.0f}")
    below.set_xlabel(f"token of the text (blocks of {view.block_size})")
    if rows <= _LABELS:
        below.set_yticks(np.arange(rows) + 0.5, [_label(token.text or token.name) for token in view.tokens], fontsize=6)
    else:
        below.set_ylabel("generated token")
    figure.colorbar(mesh, ax=below, label="weight, mean over layers and heads", pad=0.01)
    return figure


def write(view: View, path: Path) -> None:
    """Writes `draw(view)` in the format that the ending of `path` names."""
    figure = draw(view)
    with written_whole(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=200)


def _label(text: str) -> str:
    """A token as a label: no markup of formulas, nothing that is not printable."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text[:14]).replace("$", r"\$")
