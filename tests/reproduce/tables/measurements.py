"""Made-up measurements."""

from typing import Any

from reproduce.tables import names, published
from reproduce.tables.results import Line, Results


def landmark(read_length: int, retrieve: int, corpus: str = "books", **other: Any) -> Line:
    return {"table": names.LANGUAGE_MODELING, "corpus": corpus, **published.landmark(read_length, retrieve, **other)}


def full(local: int = 512, corpus: str = "books") -> Line:
    return {"table": names.LANGUAGE_MODELING, "corpus": corpus, **published.full(local)}


def transformer_xl(read_length: int, corpus: str = "books") -> Line:
    return {"table": names.LANGUAGE_MODELING, "corpus": corpus, **published.transformer_xl(read_length)}


def add_perplexities(results: Results, setting: Line, *values: float, se: float | None = 0.01, **more: Any) -> None:
    """One a seed, each of 10 windows."""
    for seed, value in enumerate(values):
        results.add({"seed": seed, "steps": 100, **setting, "perplexity": value, "se": se, "samples": 10, **more})


def add_differences(results: Results, one: Line, other: Line, *values: float, se: float | None = 0.001) -> None:
    """Nats a token of `one` above `other`: one value a seed, each of 10 windows."""
    changed = {
        f"against_{name}": other.get(name)
        for name in {**one, **other}
        if name not in ("table", "method") and one.get(name) != other.get(name)
    }
    for seed, value in enumerate(values):
        told = {"against": other["method"], "difference": value, "difference_se": se, "samples": 10}
        results.add({"seed": seed, "steps": 100, **one, **changed, **told})


def passkey(read_length: int, right: int, prompts: int, method: str = names.LANDMARK, **more: Any) -> Line:
    share = {"accuracy": right / prompts, "samples": prompts}
    named = {"table": names.PASSKEY, "method": method, "read_length": read_length, "seed": 0, "steps": 100}
    return {**named, "window": 512, **share, **more}
