"""The numbers published by Mohtashami & Jaggi 2023 (arXiv 2305.16300), and their settings.

One run each; the paper gives no intervals. Its model: 12 layers, 8 heads, width 1024, trained on windows of 512 with
blocks of 50 for 240,000 steps of 128 windows.
"""

from dataclasses import dataclass, field
from typing import Any

from reproduce.tables.names import BOOKS, FULL, LANDMARK, TRANSFORMER_XL, WITH_MISS_GATE

WINDOW = 512
LOCAL = 250
BLOCKS = {512: 10, 2048: 40, 4096: 80}  # that many lie in memory at most, by the length read


@dataclass(frozen=True)
class Row:
    """A row that a table shows, measured or not: the settings it stands for, and the paper's cells by heading."""

    where: dict[str, Any]
    paper: dict[str, str] = field(default_factory=dict)


def landmark(read_length: int, retrieve: int, *, local: int = LOCAL, blocks: int | None = None) -> dict[str, Any]:
    """The settings of landmark attention in table 1."""
    blocks = BLOCKS[read_length] if blocks is None else blocks
    return {"method": LANDMARK, "read_length": read_length, "local": local, "blocks": blocks, "retrieve": retrieve}


def full(local: int) -> dict[str, Any]:
    """The baseline of table 1: 512 tokens, of which each sees the `local` newest."""
    return {"method": FULL, "read_length": WINDOW, "local": local}


def transformer_xl(read_length: int) -> dict[str, Any]:
    return {"method": TRANSFORMER_XL, "read_length": read_length, "local": 256, "cache": 256}


def _perplexities(attended: int, books: str, math: str) -> dict[str, str]:
    return {"paper: keys": str(attended), "paper: PG-19": books, "paper: arXiv math": math}


# Table 1; "keys" is what it calls attention size.
LANGUAGE_MODELING = (
    Row(full(512), _perplexities(512, "16.12", "4.01")),
    Row(full(360), _perplexities(360, "16.76", "4.31")),
    Row(landmark(512, 2), _perplexities(360, "16.23", "4.01")),
    Row(transformer_xl(2048), _perplexities(512, "14.72", "-")),
    Row(landmark(2048, 2), _perplexities(360, "15.14", "3.43")),
    Row(landmark(2048, 2, local=350), _perplexities(460, "15.07", "3.41")),
    Row(landmark(2048, 3, local=300), _perplexities(460, "14.97", "3.36")),
    Row(landmark(2048, 4, blocks=20), _perplexities(460, "15.02", "3.37")),
    Row(landmark(2048, 4), _perplexities(460, "14.92", "3.35")),
    Row(transformer_xl(4096), _perplexities(512, "14.55", "-")),
    Row(landmark(4096, 4, blocks=40), _perplexities(460, "14.79", "3.19")),
    Row(landmark(4096, 2), _perplexities(370, "15.00", "3.29")),
    Row(landmark(4096, 4), _perplexities(470, "14.72", "3.18")),
)

SELECTIONS = ("per_token_and_head", "per_head", "per_token")
SELECTION_SETTINGS = ((2048, 2), (2048, 4), (4096, 4))  # read length, k

# Table 2, on PG-19.
SELECTION = tuple(
    Row({"corpus": BOOKS, "selection": selection, "read_length": length, "retrieve": retrieve}, {"paper: PG-19": value})
    for selection, values in zip(
        SELECTIONS,
        (("15.14", "14.92", "14.72"), ("15.48", "15.10", "14.95"), ("15.44", "15.04", "14.89")),
        strict=True,
    )
    for (length, retrieve), value in zip(SELECTION_SETTINGS, values, strict=True)
)


def _missed(method: str, threshold: float | None, skipped: str = "-", more: str = "-") -> Row:
    where = {"corpus": BOOKS, "method": method, "threshold": threshold}
    return Row(where, {"paper: skipped": skipped, "paper: more perplexity": more})


# Appendix D: PG-19, 2048 tokens, k = 4, 60,000 steps; against a model trained without the miss token.
MISS_GATE = (
    _missed(LANDMARK, None, "0 %", "+0.00"),
    _missed(WITH_MISS_GATE, 0.01),
    _missed(WITH_MISS_GATE, 0.03),
    _missed(WITH_MISS_GATE, 0.1, "23 %", "+0.10"),
    _missed(WITH_MISS_GATE, 0.3, "57 %", "+0.15"),
)

PASSKEY_LENGTH = 64 * WINDOW

# Section 4.2 and figure 3b: LLaMA-7B after 15,000 steps on windows of 512, 50 prompts a length.
PASSKEY = Row(
    {"method": LANDMARK, "read_length": PASSKEY_LENGTH},
    {"paper: LLaMA-7B": "98 % at 32,070 tokens"},
)
