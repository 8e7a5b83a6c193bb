"""Names of tables, corpora and methods, shared by measurements and report, and how the report writes values."""

from typing import Any

from reproduce.tables.intervals import Interval

# Tables.
LANGUAGE_MODELING = "language_modeling"
CONTROLS = "controls"
SELECTION = "selection"
RETRIEVE = "retrieve"
BLOCK_SIZE = "block_size"
MISS_GATE = "miss_gate"
POSITIONS = "positions"
BLOCK_DROPOUT = "block_dropout"
TRAINING_MEMORY = "training_memory"
PASSKEY = "passkey"
CONVERSION = "conversion"
THROUGHPUT = "throughput"
TABLES = (
    LANGUAGE_MODELING,
    CONTROLS,
    SELECTION,
    RETRIEVE,
    BLOCK_SIZE,
    MISS_GATE,
    POSITIONS,
    BLOCK_DROPOUT,
    TRAINING_MEMORY,
    PASSKEY,
    CONVERSION,
    THROUGHPUT,
)

# Corpora, in place of the paper's PG-19 and arXiv math.
BOOKS = "books"
MATH = "math"
CORPORA = (BOOKS, MATH)

# Methods.
LANDMARK = "landmark"
FULL = "full attention"
TRANSFORMER_XL = "Transformer-XL"
SINKS = "sliding window with sinks"
MEMORIZING = "Memorizing Transformer"
BASE_MODEL = "base model"  # pretrained, before conversion
WITH_MISS_GATE = "landmark with miss gate"
PLAIN_TOKENS = "landmarks as plain tokens"  # causal attention over the stream, no gates
WITH_JUMPS = "landmark trained with positional jumps"
WITH_BLOCK_DROPOUT = "landmark trained with block dropout"
WITH_MEMORY = "landmark trained with memory"
WITH_RECURRENCE = "landmark with a recurrent window"

# Tokens scored in each window of 512: those before the end of the first block, where landmark attention is causal
# attention, and the others.
FIRST_BLOCK = "1 to 49"
BEHIND_IT = "50 to 511"

# Fields of a measurement whose heading is not the field's name.
HEADINGS = {
    "read_length": "read length",
    "retrieve": "k",
    "cache": "XL cache",
    "local_blocks": "local blocks",
    "block_size": "block size",
    "block_dropout": "block dropout",
    "tokens_trained": "tokens trained",
}

# What stands in a cell.
NOT_MEASURED = "not measured yet"
NONE = "-"
ONE_SEED = "†"  # the interval is that of the windows


def heading(field: str) -> str:
    """The heading of a field of a measurement."""
    return HEADINGS.get(field, field.replace("_", " "))


def number(value: Any) -> str:
    """The value of a setting: numbers from a thousand on with separators, texts with escaped cell borders."""
    if value is None:
        return NONE
    if isinstance(value, bool | str):
        return str(value).replace("|", "\\|")
    return f"{value:,.10g}" if isinstance(value, float) else f"{value:,}"


def perplexity_text(interval: Interval) -> str:
    """A perplexity and its interval."""
    if not interval.known:
        return f"{interval.value:.2f} (no interval)"
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f}){_mark(interval)}"


def more_text(interval: Interval) -> str:
    """A difference in nats a token, given as a relative change of perplexity, and its interval."""
    if not interval.known:
        return f"perplexity {percent(interval.value)} (no interval)"
    return (
        f"perplexity {percent(interval.value)} ({percent(interval.low)} to {percent(interval.high)}){_mark(interval)}"
    )


def share_text(interval: Interval) -> str:
    """A share and its interval."""
    return f"{share(interval.value)} ({share(interval.low)} to {share(interval.high)})"


def share(value: float) -> str:
    """0.98 is "98.0 %"."""
    return f"{value:.1%}".replace("%", " %")


def percent(change: float) -> str:
    """A relative change: 0.012 is "+1.20 %"."""
    return f"{change:+.2%}".replace("%", " %")


def _mark(interval: Interval) -> str:
    return ONE_SEED if interval.seeds == 1 else ""
