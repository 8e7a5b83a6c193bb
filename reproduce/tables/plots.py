"""Plots of the report: a curve for each setting, with a band from its lowest to its highest seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter, NullLocator
from PIL import Image  # comes with matplotlib

from benchmarks.plots import grouped, panels
from reproduce.tables import names
from reproduce.tables.measured import accuracy, by_setting, labels, mean, perplexity
from reproduce.tables.names import number
from reproduce.tables.results import Line, Results

# Ours stand out; what they are held against is grey or dark.
COLOURS = {
    names.LANDMARK: "tab:red",
    names.WITH_MISS_GATE: "tab:orange",
    names.FULL: "black",
    names.BASE_MODEL: "black",
    names.TRANSFORMER_XL: "tab:blue",
    names.SINKS: "grey",
    names.MEMORIZING: "tab:purple",
}
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
DPI = 100
LEGEND_INSIDE = 4  # entries that find room beside the curves
COLOURS_KEPT = 128


@dataclass(frozen=True)
class Plot:
    """`draw` returns None where nothing was measured."""

    name: str
    table: str
    text: str
    draw: Callable[[Results], Figure | None]


def save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours, which is a third as large and looks the same."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(COLOURS_KEPT, dither=Image.Dither.NONE).save(path, optimize=True)


def _by_length(results: Results) -> Figure | None:
    """A panel for each corpus; of settings that differ in the blocks kept, the one that keeps most."""
    lines = _perplexities(results, names.LANGUAGE_MODELING)
    by_corpus = grouped(lines, lambda line: line.get("corpus"))
    if not lines:
        return None
    figure, [row] = panels(1, len(by_corpus))
    for axes, (corpus, own) in zip(row, by_corpus.items(), strict=True):
        _curves(axes, own, "read_length", _perplexity, but=("blocks",))
        _label(axes, f"{corpus}", "tokens read", "perplexity", logarithmic=True)
    return figure


def _one_curve(table: str, x: str, title: str, but: Sequence[str] = ()) -> Callable[[Results], Figure | None]:
    def draw(results: Results) -> Figure | None:
        lines = [line for line in _perplexities(results, table) if line.get(x) is not None]
        if not lines:
            return None
        figure, [[axes]] = panels(1, 1)
        _curves(axes, lines, x, _perplexity, but)
        _label(axes, title, x.replace("_", " "), "perplexity", logarithmic=True)
        return figure

    return draw


def _granularity(results: Results) -> Figure | None:
    """The ways to choose side by side, for each length read and number of blocks opened."""
    lines = _perplexities(results, names.SELECTION)
    if not lines:
        return None
    by_corpus = grouped(lines, lambda line: line.get("corpus"))
    figure, [row] = panels(1, len(by_corpus))
    for axes, (corpus, own) in zip(row, by_corpus.items(), strict=True):
        settings = sorted({(line["read_length"], line.get("retrieve") or 0) for line in own})
        selections = grouped(own, lambda line: line.get("selection"))
        for place, (selection, some) in enumerate(selections.items()):
            shift = 0.15 * (place - (len(selections) - 1) / 2)
            at = grouped(some, lambda line: (line["read_length"], line.get("retrieve") or 0))
            places = [settings.index(setting) + shift for setting in at]
            middle, low, high = zip(*(_perplexity(_chosen(group)) for group in at.values()), strict=True)
            bars = [
                [a - b for a, b in zip(middle, low, strict=True)],
                [b - a for a, b in zip(middle, high, strict=True)],
            ]
            axes.errorbar(places, middle, yerr=bars, fmt="o", capsize=3, label=str(selection).replace("_", " "))
        axes.set_xticks(range(len(settings)), [f"{length:,} tokens\nk = {retrieve}" for length, retrieve in settings])
        axes.set(title=f"block selection, {corpus}", ylabel="perplexity")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    return figure


def _skipped(results: Results) -> Figure | None:
    lines = _perplexities(results, names.MISS_GATE)
    gated = [line for line in lines if line.get("threshold") is not None and line.get("skipped") is not None]
    if not gated:
        return None
    figure, [[axes]] = panels(1, 1)
    for group in by_setting([line for line in lines if line.get("threshold") is None]):
        middle, _, _ = _perplexity(group)
        axes.axhline(middle, color=_colour(group), linestyle=":", label=f"{group[0]['method']}, nothing skipped")
    series = by_setting(gated, but=("seed", "steps", "threshold"))
    for own, label in zip(series, _names(series, ("seed", "steps", "threshold")), strict=True):
        at = [_chosen(some) for _, some in sorted(grouped(own, lambda line: line["threshold"]).items())]
        places = [100 * (mean(group, "skipped") or 0.0) for group in at]
        middle, _, _ = zip(*(_perplexity(group) for group in at), strict=True)
        axes.plot(places, middle, marker="o", color=_colour(own), label=label)
        for place, height, group in zip(places, middle, at, strict=True):
            axes.annotate(f"{group[0]['threshold']:g}", (place, height), (4, 4), textcoords="offset points")
    axes.margins(x=0.1)  # room for the last threshold
    _label(axes, "skipped retrievals, by threshold on the miss gate", "retrievals skipped, %", "perplexity")
    return figure


def _heat_map(results: Results) -> Figure | None:
    """Length by depth, for landmark attention; a panel for each setting."""
    lines = results.find(table=names.PASSKEY, method=names.LANDMARK)
    lines = [line for line in lines if "accuracy" in line and line.get("depth") is not None]
    if not lines:
        return None
    but = ("seed", "read_length", "depth")
    groups = by_setting(lines, but)
    figure, [row] = panels(1, len(groups))
    for axes, own, label in zip(row, groups, _names(groups, but), strict=True):
        lengths, depths = (sorted({line[name] for line in own}) for name in ("read_length", "depth"))
        cells = {place: accuracy(some).value for place, some in grouped(own, _place).items()}
        shares = [[cells.get((length, depth), float("nan")) for length in lengths] for depth in depths]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for line, values in enumerate(shares):
            for column, value in enumerate(values):
                if value == value:  # cells that were not measured stay empty
                    colour = "black" if value > 0.6 else "white"
                    axes.text(column, line, f"{100 * value:.0f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set(title=f"passkeys found, %: {label}", xlabel="tokens read", ylabel="depth of the passkey (0: first)")
        figure.colorbar(image, ax=axes, label="share found")
    return figure


def _conversion(results: Results) -> Figure | None:
    """Perplexity and passkeys found, by tokens trained."""
    lines = [line for line in results.find(table=names.CONVERSION) if line.get("tokens_trained") is not None]
    keys = [line for line in lines if "accuracy" in line and "against" not in line]
    texts = [line for line in _perplexities(results, names.CONVERSION) if line.get("tokens_trained") is not None]
    kinds = [
        (own, figures, name)
        for own, figures, name in ((texts, _perplexity, "perplexity"), (keys, _accuracy, "passkeys found, %"))
        if own
    ]
    if not kinds:
        return None
    figure, [row] = panels(1, len(kinds))
    for axes, (own, figures, name) in zip(row, kinds, strict=True):
        _curves(axes, own, "tokens_trained", figures, but=("depth",))
        _label(axes, "conversion", "tokens trained", name)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


PLOTS = (
    Plot("perplexity", names.LANGUAGE_MODELING, "perplexity by the length read", _by_length),
    Plot("selection", names.SELECTION, "perplexity by block selection", _granularity),
    Plot(
        "retrieve",
        names.RETRIEVE,
        "perplexity by blocks opened",
        _one_curve(names.RETRIEVE, "retrieve", "blocks opened"),
    ),
    Plot(
        "block_size",
        names.BLOCK_SIZE,
        "perplexity by block size",
        _one_curve(names.BLOCK_SIZE, "block_size", "block size", but=("local", "retrieve", "blocks")),
    ),
    Plot("miss_gate", names.MISS_GATE, "perplexity by retrievals skipped", _skipped),
    Plot("passkey", names.PASSKEY, "passkeys found by length and depth", _heat_map),
    Plot("conversion", names.CONVERSION, "perplexity and passkeys by tokens of conversion", _conversion),
)


def _perplexities(results: Results, table: str) -> list[Line]:
    return [line for line in results.find(table=table, against=None) if "perplexity" in line]


def _place(line: Line) -> tuple[int, float]:
    return line["read_length"], line["depth"]


def _perplexity(lines: Sequence[Line]) -> tuple[float, float, float]:
    """Over all seeds, of the lowest and of the highest."""
    values = [line["perplexity"] for line in lines]
    return perplexity(lines).value, min(values), max(values)


def _accuracy(lines: Sequence[Line]) -> tuple[float, float, float]:
    """The same of passkeys found, in percent."""
    shares = [accuracy(own).value for own in grouped(lines, lambda line: line["seed"]).values()]
    return 100 * accuracy(lines).value, 100 * min(shares), 100 * max(shares)


def _chosen(lines: Sequence[Line], but: Sequence[str] = ("seed",)) -> list[Line]:
    """Of several settings at one place of a curve the most trained, and of these the one that keeps most blocks."""
    return max(by_setting(lines, but), key=lambda group: (group[0]["steps"], group[0].get("blocks") or 0))


def _curves(
    axes: Axes,
    lines: Sequence[Line],
    x: str,
    figures: Callable[[Sequence[Line]], tuple[float, float, float]],
    but: Sequence[str] = (),
) -> None:
    """A curve over the field `x` for each setting, whatever it has in the fields `but`."""
    along = ("seed", "steps", x, *but)
    for of_method in grouped(lines, lambda line: line["method"]).values():
        series = by_setting(of_method, along)
        styles = cycle(STYLES)
        for own, label in zip(series, _names(series, along), strict=True):
            at = sorted(grouped(own, lambda line: line[x]).items())
            chosen = [figures(_chosen(some, ("seed", "depth"))) for _, some in at]
            places = [place for place, _ in at]
            middle, low, high = zip(*chosen, strict=True)
            line, marker = next(styles)
            axes.plot(places, middle, line, marker=marker, color=_colour(own), label=label)
            axes.fill_between(places, low, high, color=_colour(own), alpha=0.15, linewidth=0)
            if len(places) == 1:  # where a band has no width
                axes.vlines(places, low, high, color=_colour(own), alpha=0.5)


def _names(series: Sequence[Sequence[Line]], but: Sequence[str]) -> list[str]:
    """The method of each series, with the settings in which it differs from the others."""
    settings = labels(series, (*but, "method"))
    return [", ".join(filter(None, (own[0]["method"], label))) for own, label in zip(series, settings, strict=True)]


def _colour(lines: Sequence[Line]) -> str:
    return COLOURS.get(lines[0]["method"], "tab:green")


def _label(axes: Axes, title: str, x: str, y: str, *, logarithmic: bool = False) -> None:
    """Titles; on a logarithmic axis, ticks at the places that were measured."""
    axes.set(title=title, xlabel=x, ylabel=y)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xticks(sorted({float(place) for line in axes.lines for place in np.asarray(line.get_xdata())}))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(round(value))))
    axes.grid(visible=True, alpha=0.3)
    if len(axes.get_legend_handles_labels()[1]) <= LEGEND_INSIDE:
        axes.legend(fontsize="small")
    else:  # it would cover what it explains
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
