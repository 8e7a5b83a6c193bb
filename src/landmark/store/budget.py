"""Bytes of memory, as people write them and as blocks fill them."""

import re

from landmark.store.records import BlockShape

_UNITS = {"": 1, **{f"{p}b": 1000**i for i, p in enumerate(("", "k", "m", "g", "t"))}}
_UNITS |= {f"{p}ib": 1024**i for i, p in enumerate(("k", "m", "g", "t"), start=1)}

_NO_MEMORY = 2**63  # bytes that no machine has


def parse_bytes(name: str, value: int | str) -> int:
    """Bytes from a number or from text such as "256MB" or "1.5GiB"; `name` is the setting they are for.

    Raises ValueError for what is neither, or less than one byte.
    """
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    size = 0.0 if found is None else float(found[1]) * _UNITS.get(found[2].lower(), 0)
    if not 1 <= size < _NO_MEMORY:
        raise ValueError(f"{name} is {value!r}: give bytes, as a whole number or as text like '256MB' or '1.5GiB'")
    return int(size)


def step_bytes(shape: BlockShape, rows: int, blocks: int) -> int:
    """The least budget of a layer whose queries may need `blocks` blocks of each key-value head at once.

    That is top_k for each query head of the group, and top_k alone where heads share their choice.
    """
    return rows * shape.nbytes * blocks


def check_budget(budget: int, shape: BlockShape, rows: int, step_blocks: int) -> None:
    """Raises ValueError for a layer's budget that holds less than the `step_blocks` blocks that a query may need."""
    needed = step_bytes(shape, rows, step_blocks)
    if budget < needed:
        raise ValueError(
            f"a layer's budget of {budget} bytes is too small for a single query, whose blocks take {needed} "
            "with all rows: raise the budget, or lower top_k, block_size or the number of rows"
        )
