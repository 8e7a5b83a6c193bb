"""The settings of reading through memory, and what is wrong with bad ones."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from landmark.stream import check_block_size

# Who chooses the blocks to open: each query of each head; each query, for all heads; each head, for all queries of the
# chunk. "per_head" looks ahead within a chunk: an earlier query reads what a later one asked for, so that what a model
# predicts there depends on tokens after it, and on how the text is cut into chunks. Between chunks nothing looks ahead.
Selection = Literal["per_token_and_head", "per_token", "per_head"]
SELECTIONS: tuple[str, ...] = get_args(Selection)
Positions = Literal["stingy", "true"]

_NAMES = {"top_k": "retrieve"}  # of settings that were saved under another name


def current_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings under the names of today."""
    return {_NAMES.get(name, name): value for name, value in saved.items()}


def check_rules(*, block_size: Any, retrieve: Any, selection: Any, local_blocks: Any, positions: Any) -> None:
    """Raises ValueError, naming the value and the remedy, for settings that mean nothing."""
    check_block_size(block_size)
    _check_count("retrieve", retrieve, "0 means local attention only")
    _check_count("local_blocks", local_blocks, "0 is the paper's rule")
    _check_choice("selection", selection, SELECTIONS)
    _check_choice("positions", positions, get_args(Positions))


def check_max_blocks(max_blocks: Any) -> None:
    """Raises ValueError unless `max_blocks` is None or a positive int."""
    if max_blocks is not None and (not isinstance(max_blocks, int) or max_blocks < 1):
        raise ValueError(f"max_blocks is {max_blocks!r}: give 1 or more, or None to keep all")


def check_miss_threshold(miss_threshold: Any) -> None:
    """Raises ValueError unless `miss_threshold` is a number from 0 to below 1."""
    number = isinstance(miss_threshold, int | float) and not isinstance(miss_threshold, bool)
    if not number or not 0 <= miss_threshold < 1:
        raise ValueError(
            f"miss_threshold is {miss_threshold!r}: give a share of attention, 0 (always open blocks) or more and less"
            " than 1 (for no blocks at all, retrieve is 0)"
        )


def _check_count(name: str, value: Any, note: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}: give a whole number, 0 or more ({note})")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
