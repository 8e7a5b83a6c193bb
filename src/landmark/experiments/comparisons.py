"""Differences between two rows of one seed, window by window: what the report's claims rest on."""

import math
from typing import Any

import numpy as np

from landmark.report.claims import comparisons
from landmark.report.results import KEY, Line, Results


def add_comparisons(results: Results, circumstances: dict[str, Any]) -> None:
    """Adds the differences that claims rest on, of all rows that are there for the same seed and steps."""
    for one, other in comparisons():
        for line in _measured(results, one):
            same = {name: line[name] for name in ("seed", "steps")}
            for against in _measured(results, other | same):
                results.add(difference(line, against) | circumstances)


def difference(line: Line, against: Line) -> Line:
    """`line` minus `against` in nats a token, below 0 where `line` is better."""
    gaps = np.asarray(line["nll"]) - np.asarray(against["nll"])
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else None
    fields = {name: line[name] for name in KEY if line.get(name) is not None}
    changed = {
        f"against_{name}": against.get(name)
        for name in KEY
        if name not in ("method", "table", "seed") and against.get(name) != line.get(name)
    }
    told = {"difference": float(gaps.mean()), "difference_se": error, "samples": len(gaps)}
    return fields | {"against": against["method"]} | changed | told


def _measured(results: Results, setting: Line) -> list[Line]:
    return [line for line in results.find(**setting) if "perplexity" in line]
