"""Perplexity: rows of the report, each a way to read texts, and their measurement."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from landmark.data.text import read_text
from landmark.evaluation.perplexity import Setting, cut_windows, score
from landmark.evaluation.reading import NOTHING, Reading
from landmark.hf.calls import Reader
from landmark.hf.tokenizer import encode
from landmark.readers.memorizing import Memorizing
from landmark.readers.recurrent import Recurrent
from landmark.readers.sinks import Sinks
from landmark.stream import stream_length
from reproduce.runs.setup import LENGTHS, SPAN, Setup
from reproduce.trainings.small import BLOCK_SIZE, WINDOW

BATCH_SIZE = 4  # windows read side by side
BLOCKS = {512: 10, 2048: 40, 4096: 80}  # blocks in memory at the end of as many tokens


@dataclass(frozen=True)
class SegmentReading:
    """Reading in segments of `chunk_size` ordinary tokens, through a reader that `make` builds for each text.

    A token attends to the newest `keep` keys before its segment, and to `extra` more anywhere. A sliding window
    (attention "sinks") differs: its tokens attend to the newest `keep`, their own included, and the first `sinks` of
    the text.
    """

    attention: str
    chunk_size: int
    make: Callable[[], Reader]
    keep: int = 0
    extra: int = 0
    sinks: int = 4

    settings = NOTHING  # of a cache, which it has not
    looks_ahead = False

    def start(self, config: PretrainedConfig) -> dict[str, Any]:
        """Keyword arguments of every forward over one text; the reader in them carries what was read."""
        return {"landmark_reader": self.make(), "use_cache": False}

    def attended(self, length: int) -> float:
        """Keys that a token attends to, its own included, on average over `length` tokens."""
        positions = np.arange(length)
        if self.attention == "sinks":
            return float(np.minimum(positions + 1, self.keep + self.sinks).mean())
        inside = positions % self.chunk_size
        before = positions - inside
        return float((inside + 1 + np.minimum(before, self.keep + self.extra)).mean())

    def scored(self, length: int) -> float:
        """Keys that a token scores on average only to choose `extra` of them, in the one layer that does."""
        positions = np.arange(length)
        return float((positions - positions % self.chunk_size).mean()) if self.extra else 0.0


@dataclass(frozen=True)
class PlainTokens(Reading):
    """The whole text at once, by causal attention over its stream: landmarks are read like other tokens."""

    def start(self, config: PretrainedConfig) -> dict[str, Any]:
        return {"use_cache": False, "landmark_gates": False}


@dataclass(frozen=True)
class Row:
    """One measurement of a model: texts of `length` tokens read as `reading` makes of its configuration."""

    table: str
    method: str
    length: int
    reading: Callable[[PretrainedConfig], Reading | SegmentReading]
    settings: dict[str, Any] = field(default_factory=dict)
    trained_positions: int | None = None
    """Declared in the model's configuration while it is measured; None leaves its own."""
    targets: tuple[int, int] = (1, min(LENGTHS) - 1)
    """First and last position that is scored in each window of 512: by default all but the first token."""

    def key(self, corpus: str, seed: int, steps: int) -> dict[str, Any]:
        """The key fields of the measurement."""
        named = {"table": self.table, "method": self.method, "read_length": self.length, "corpus": corpus}
        return named | {"seed": seed, "steps": steps} | self.settings

    def with_targets(self, name: str) -> "Row":
        """The row with the targets of a name, such as "1 to 49", alone."""
        first, last = map(int, name.split(" to "))
        return replace(self, targets=(first, last)).with_settings(targets=name)

    def with_settings(self, **settings: Any) -> "Row":
        """The row with further settings."""
        return replace(self, settings=self.settings | settings)


def landmark(
    table: str, length: int, retrieve: int, *, method: str = "landmark", local: int = 250, **changes: Any
) -> Row:
    """Landmark attention that reads chunks of `local` tokens, by the paper's rules (no local blocks).

    `changes` are arguments of `Reading.of`; those that belong to the method become settings of the row.
    """
    arguments: dict[str, Any] = {"local_blocks": 0} | changes
    settings = {"local": local, "retrieve": retrieve, "blocks": changes.get("max_blocks") or BLOCKS[length]}
    settings |= {
        name: changes[key]
        for key, name in (("selection", "selection"), ("miss_threshold", "threshold"), ("local_blocks", "local_blocks"))
        if key in changes
    }

    def reading(config: PretrainedConfig) -> Reading:
        return Reading.of(config, retrieve=retrieve, chunk_size=local, **arguments)

    return Row(table, method, length, reading, settings)


def true_positions(length: int, retrieve: int, method: str) -> Row:
    """Landmark attention whose opened blocks keep their positions in the text."""
    row = landmark("positions", length, retrieve, method=method, positions="true")
    return replace(row, trained_positions=stream_length(SPAN, BLOCK_SIZE) + 1).with_settings(positions="true")


def full(table: str, local: int = WINDOW) -> Row:
    """Full attention within windows of `local` tokens, each read from scratch."""
    one = SegmentReading("full", local, lambda: Recurrent(local, 0))
    return Row(table, "full attention", WINDOW, lambda config: one, {"local": local})


def plain_tokens(table: str) -> Row:
    """Causal attention over windows with landmarks in them, each read from scratch."""
    one = PlainTokens("full", BLOCK_SIZE)
    return Row(table, "landmarks as plain tokens", WINDOW, lambda config: one, {"local": WINDOW})


def transformer_xl(table: str, length: int, window: int = 256) -> Row:
    """Transformer-XL: segments that attend to the segment before."""
    one = SegmentReading("recurrent", window, lambda: Recurrent(window, window), keep=window)
    return Row(table, "Transformer-XL", length, lambda config: one, {"local": window, "cache": window})


def sinks(table: str, length: int, count: int = 4) -> Row:
    """A sliding window with attention sinks, as long as the training window."""
    window = WINDOW - count
    one = SegmentReading("sinks", 256, lambda: Sinks(256, window, count), keep=window, sinks=count)
    return Row(table, "sliding window with sinks", length, lambda config: one, {"local": window})


def memorizing(table: str, length: int, retrieve: int = 32) -> Row:
    """Memorizing Transformer: windows whose memory layer retrieves single keys of all earlier ones."""

    def reading(config: PretrainedConfig) -> SegmentReading:
        layer = config.landmark_memory_layer
        return SegmentReading("knn", WINDOW, lambda: Memorizing(WINDOW, retrieve, layer), extra=retrieve)

    return Row(table, "Memorizing Transformer", length, reading, {"local": WINDOW, "retrieve": retrieve})


class TestWindows:
    """Held-out windows of each corpus, the same for every method."""

    __test__ = False  # not collected by pytest

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.cut: dict[str, np.ndarray] = {}

    def of(self, corpus: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """`[W, SPAN]` ids, spread evenly over the test files."""
        if corpus not in self.cut:
            files = self.setup.corpora[corpus].test
            ids = [encode(tokenizer, read_text(path)).ids.numpy() for path in files]
            self.cut[corpus] = cut_windows(ids, SPAN, self.setup.scale.windows)
        return self.cut[corpus]


def measure(row: Row, model: PreTrainedModel, windows: np.ndarray) -> dict[str, Any]:
    """The figures of one row.

    Every method is scored on the same tokens, unless the row names others: those that are not the first of a piece of
    any length read. `nll` holds
    the mean of each window in nats a token, from which differences between methods are taken window by window.
    """
    with _declared_range(model.config, row.trained_positions):
        reading = row.reading(model.config)
        scored = score(model, windows, Setting(reading, row.length), batch_size=BATCH_SIZE)
    positions, (first, last) = np.arange(SPAN) % min(LENGTHS), row.targets
    nll = scored.nll[:, (first <= positions) & (positions <= last)].mean(axis=1)
    assert np.isfinite(nll).all(), "every method predicts these tokens"
    figures = {
        "perplexity": math.exp(nll.mean()),
        "se": float(nll.std(ddof=1) / math.sqrt(len(nll))) if len(nll) > 1 else None,
        "samples": len(nll),
        **cost(reading, model.config, row.length),
        "seconds": round(scored.seconds, 1),
        "nll": [round(value, 6) for value in nll.tolist()],
    }
    return figures | ({} if scored.skipped is None else {"skipped": scored.skipped})


def cost(reading: Reading | SegmentReading, config: PretrainedConfig, length: int) -> dict[str, float]:
    """Keys that a token attends to, keys that it scores besides, and the FLOPs of attention in all layers, on average.

    A key that is attended to costs a product of its width with the query and one with its value; one that is scored,
    the first alone.
    """
    attended, scored = reading.attended(length), reading.scored(length)
    layers = config.num_hidden_layers
    searching = 1 if reading.attention == "knn" else layers
    flops = config.hidden_size * (4 * layers * attended + 2 * searching * scored)
    return {"attended": attended, "scored": scored, "attention_flops": flops}


@contextmanager
def _declared_range(config: PretrainedConfig, positions: int | None) -> Iterator[None]:
    """The trained range of a configuration, replaced for a while: true positions go beyond it."""
    trained = config.max_position_embeddings
    if positions is not None:
        config.max_position_embeddings = positions
    try:
        yield
    finally:
        config.max_position_embeddings = trained
