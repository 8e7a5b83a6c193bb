"""Landmark keys and queries of a real text: the package's model reads the package's book."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import landmark
from landmark.assets import book_path, model_path
from landmark.data.text import read_text
from landmark.hf import LandmarkCache
from landmark.hf.tokenizer import encode, load_tokenizer, quiet_transformers
from landmark.index.base import Index
from landmark.index.exact import ExactIndex
from landmark.memory.storage import ProcessStorage

LAYER = 2  # of the model's four; in layer 0 all landmark keys are equal
TOKENS = 60_000


class Landmarks(NamedTuple):
    """One key-value head of one layer: `keys [n,D]` of the blocks in memory, and `queries [H,m,D]` over that text."""

    keys: Tensor
    queries: Tensor
    retrieve: int


class RecordingIndex(ExactIndex):
    """Remembers what it was asked."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.asked: list[Tensor] = []

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        self.asked.append(query)
        return super().search(query, k, upto)


@dataclass(frozen=True)
class _RecordingStorage(ProcessStorage):
    indexes: tuple[RecordingIndex, ...] = ()

    def index(self, rows: int, max_blocks: int | None, *, constant_keys: bool, device: torch.device) -> Index:
        return self.indexes[0]


def recording_cache(config: Any, layers: Collection[int]) -> tuple[LandmarkCache, list[RecordingIndex]]:
    """A cache for one text, and the indexes of its `layers`, which remember the queries."""
    recorders = {layer: RecordingIndex(1) for layer in layers}
    storage = {
        layer: _RecordingStorage(indexes=(recorders[layer],)) if layer in recorders else ProcessStorage()
        for layer in range(config.num_hidden_layers)
    }
    return LandmarkCache(config, storage=storage), list(recorders.values())


def landmarks_of_book(progress: Callable[[int], object] | None = None) -> Landmarks:
    """Reads the beginning of the book, which takes a quarter of a minute; `progress` gets numbers of tokens."""
    quiet_transformers()
    model = landmark.from_pretrained(model_path())
    tokenizer = load_tokenizer(model_path(), model)
    ids = encode(tokenizer, read_text(book_path())).ids[:TOKENS]
    cache, (index,) = recording_cache(model.config, [LAYER])
    landmark.read(model, ids, cache, progress=progress)
    count = int(index.numbers(torch.device("cpu")).max()) + 1
    keys = index.keys(torch.arange(count)[None])[0]
    group = index.asked[0].shape[1] // len(keys)
    queries = torch.cat(index.asked, dim=2)[0, :group]
    return Landmarks(keys[0], queries, cache.settings.reading.retrieve)


def drawn_like(keys: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Keys `[count,D]` from a normal distribution with the mean and covariance of `keys [n,D]`."""
    root = torch.linalg.cholesky(torch.cov(keys.T.double())).float()
    drawn = torch.empty(count, keys.shape[1])
    for some in drawn.split(1 << 20):
        torch.matmul(torch.randn(some.shape, generator=generator), root.T, out=some)
        some += keys.mean(0)
    return drawn
