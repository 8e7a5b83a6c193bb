"""How fields, numbers and intervals are written in the report."""

from typing import Any

from reproduce.tables.intervals import Interval

NOT_MEASURED = "not measured yet"
NONE = "-"
ONE_SEED = "†"  # the interval is that of the windows

WORDS = {
    "read_length": "read length",
    "retrieve": "k",
    "cache": "XL cache",
    "local_blocks": "local blocks",
    "block_size": "block size",
    "block_dropout": "block dropout",
    "tokens_trained": "tokens trained",
}


def word(field: str) -> str:
    return WORDS.get(field, field.replace("_", " "))


def number(value: Any) -> str:
    """A setting's value: numbers from a thousand on with separators, texts without what would end a cell."""
    if value is None:
        return NONE
    if isinstance(value, bool | str):
        return str(value).replace("|", "\\|")
    return f"{value:,.10g}" if isinstance(value, float) else f"{value:,}"


def perplexity_text(interval: Interval) -> str:
    mark = ONE_SEED if interval.seeds == 1 else ""
    if not interval.known:
        return f"{interval.value:.2f} (no interval)"
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f}){mark}"


def share_text(interval: Interval) -> str:
    return f"{share(interval.value)} ({share(interval.low)} to {share(interval.high)})"


def share(value: float) -> str:
    """0.98 is "98.0 %"."""
    return f"{value:.1%}".replace("%", " %")


def more_text(interval: Interval) -> str:
    """A difference of so many nats a token as a change of perplexity in percent."""
    if not interval.known:
        return f"perplexity {percent(interval.value)} (no interval)"
    mark = ONE_SEED if interval.seeds == 1 else ""
    return f"perplexity {percent(interval.value)} ({percent(interval.low)} to {percent(interval.high)}){mark}"


def percent(change: float) -> str:
    """Such a change, from its share: 0.012 is "+1.20 %"."""
    return f"{change:+.2%}".replace("%", " %")


# Names that whoever measures and whoever reports must spell alike.


# Tables of the report.
LANGUAGE_MODELING = "language_modeling"
SELECTION = "selection"
RETRIEVE = "retrieve"
BLOCK_SIZE = "block_size"
MISS_GATE = "miss_gate"
POSITIONS = "positions"
BLOCK_DROPOUT = "block_dropout"
TRAINING_MEMORY = "training_memory"
PASS_KEY = "pass_key"
CONVERSION = "conversion"
THROUGHPUT = "throughput"
TABLES = (
    LANGUAGE_MODELING,
    SELECTION,
    RETRIEVE,
    BLOCK_SIZE,
    MISS_GATE,
    POSITIONS,
    BLOCK_DROPOUT,
    TRAINING_MEMORY,
    PASS_KEY,
    CONVERSION,
    THROUGHPUT,
)

# Corpora: what the paper's PG-19 and arXiv math are held against.
BOOKS = "books"
MATH = "math"
CORPORA = (BOOKS, MATH)

# Methods.
LANDMARK = "landmark"
FULL = "full attention"
TRANSFORMER_XL = "Transformer-XL"
SINKS = "sliding window with sinks"
MEMORIZING = "Memorizing Transformer"
ANCESTOR = "plain ancestor"  # a pretrained model as it was before it was converted
WITH_MISS_GATE = "landmark with miss gate"
WITH_JUMPS = "landmark trained with positional jumps"
WITH_BLOCK_DROPOUT = "landmark trained with block dropout"
WITH_MEMORY = "landmark trained with memory"
WITH_RECURRENCE = "landmark with a recurrent window"
