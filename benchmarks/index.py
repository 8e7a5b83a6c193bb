"""Search through landmark keys: every index against exact search."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from benchmarks.compare import Method, Row, Task, compare
from benchmarks.faiss_index import FaissIndex, FaissKind
from benchmarks.landmark_keys import Landmarks, drawn_like
from benchmarks.machine import Machine, shortage
from benchmarks.roofline import Work
from landmark.index.base import Index
from landmark.index.hierarchical import HierarchicalIndex
from landmark.index.options import IndexKind, IndexOptions, make_index

BASELINE = "exact"
FAISS: dict[str, FaissKind] = {"faiss_flat": "flat", "faiss_ivf": "ivf", "faiss_hnsw": "hnsw"}
# More blocks than these would take many minutes to build.
_LARGEST = {"faiss_ivf": 1_000_000, "faiss_hnsw": 100_000}

Make = Callable[[torch.device], Index]


@dataclass(frozen=True)
class Built:
    """An index with all keys in it, or the reason why there is none."""

    name: str
    index: Index | None = None
    missing: str | None = None
    seconds: float = 0.0


def methods(names: str) -> dict[str, Make]:
    """Indexes by name, exact search first; NAME@RECALL asks for less than all of the best.

    Raises ValueError for names that mean nothing.
    """
    known: dict[str, IndexKind] = {kind: kind for kind in get_args(IndexKind) if kind != "auto"}
    chosen = {BASELINE: _ours(IndexOptions(BASELINE))}
    for name in map(str.strip, names.split(",")):
        kind, _, recall = name.partition("@")
        if name in FAISS:
            chosen[name] = _of_faiss(FAISS[name])
            continue
        if kind not in known:
            every = ", ".join([*known, *FAISS])
            raise ValueError(f"method {name!r} is none: choose from {every}, or hierarchical@0.99")
        try:
            chosen[name] = _ours(IndexOptions(known[kind], recall=float(recall or 1)))
        except ValueError as error:
            raise ValueError(f"method {name!r}: {error}") from error
    return chosen


def _ours(options: IndexOptions) -> Make:
    return lambda device: make_index(options, 1, None, constant_keys=False, device=device)


def _of_faiss(kind: FaissKind) -> Make:
    return lambda _: FaissIndex(1, kind=kind)


def run(
    machine: Machine,
    landmarks: Landmarks,
    blocks: int,
    queries: Sequence[int],
    chosen: dict[str, Make],
    rounds: int,
    progress: Callable[[int], object],
) -> Iterator[Row]:
    """The rows of so many blocks; `progress` gets a step for each index, `rounds + 1` for each number of queries."""
    generator = torch.Generator().manual_seed(0)
    copies = 1 + sum(blocks <= _LARGEST.get(name, blocks) for name in chosen)
    lack = shortage(4 * landmarks.keys.shape[1] * blocks * copies, machine.device)
    keys = drawn_like(landmarks.keys, blocks if lack is None else 1, generator)[None]
    built = []
    for name, make in chosen.items():
        built.append(_build(name, make, keys, landmarks.queries[None, :, :64], lack))
        progress(1)
    del keys
    for count in queries:
        sampled = torch.randint(landmarks.queries.shape[1], (count,), generator=generator)
        yield from _search(
            machine, built, landmarks.queries[None, :, sampled], landmarks.retrieve, blocks, rounds, progress
        )


def _build(name: str, make: Make, keys: Tensor, query: Tensor, lack: str | None) -> Built:
    """Searches once, too: some of the building waits for the first queries."""
    largest = _LARGEST.get(name)
    if lack is not None:
        return Built(name, missing=lack)
    if largest is not None and keys.shape[1] > largest:
        return Built(name, missing=f"not built for more than {largest:,} blocks: it takes many minutes")
    try:
        index = make(keys.device)
    except ValueError as error:
        return Built(name, missing=str(error))
    started = time.perf_counter()
    index.append(0, keys)
    index.search(query, 1, [keys.shape[1]])
    return Built(name, index, seconds=time.perf_counter() - started)


def _search(
    machine: Machine,
    built: list[Built],
    query: Tensor,
    k: int,
    blocks: int,
    rounds: int,
    progress: Callable[[int], object],
) -> list[Row]:
    """Times are of one query, of all its heads."""
    heads, count, dim = query.shape[1:]
    what: Row = {
        "bench": "index",
        "blocks": blocks,
        "queries": count,
        "heads": heads,
        "kv_heads": 1,
        "head_dim": dim,
        "retrieve": k,
    }
    work = Work(2 * dim * heads * blocks, 4 * dim * blocks // count)
    made = [_method(one, query, k, blocks, work) for one in built]
    rows = compare(machine, Task(what, BASELINE, units=count), made, rounds, progress)
    exact = built[0].index
    best = None if exact is None else exact.search(query, k, [blocks])[1]
    return [row | _found(one, query, best, k, blocks) for row, one in zip(rows, built, strict=True)]


def _method(built: Built, query: Tensor, k: int, blocks: int, work: Work) -> Method:
    index = built.index
    if index is None:
        return Method(built.name, missing=built.missing)
    return Method(
        built.name, lambda: index.search(query, k, [blocks]), work=lambda: work, kept_bytes=lambda: index.nbytes
    )


def _found(built: Built, query: Tensor, best: Tensor | None, k: int, blocks: int) -> Row:
    """What share of the exact best was found, and what share of the keys was read for it where that is known."""
    if built.index is None or best is None:
        return {"recall": None, "read_share": None, "build_s": None}
    found = built.index.search(query, k, [blocks])[1]
    read = None
    if isinstance(built.index, HierarchicalIndex) and built.index.keys_scored is not None:
        read = built.index.keys_scored.double().mean().item() / blocks
    recall = (best[..., None] == found[..., None, :]).any(-1).double().mean().item()
    return {"recall": recall, "read_share": read, "build_s": built.seconds}
