"""What int8 below the device costs: perplexity, passkeys, bytes of a token, and the time of a fetch."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.models import model_and_tokenizer
from benchmarks.options import TierInt8Options
from landmark.assets import book_path
from landmark.data.text import read_text
from landmark.evaluation import passkey, perplexity
from landmark.evaluation.reading import Reading
from landmark.hf import LandmarkCache
from landmark.hf.config import head_dim, key_value_heads, landmark_settings
from landmark.hf.tokenizer import encode
from landmark.settings import KvDtype
from landmark.store.base import BlockShape, CacheMisses
from landmark.store.files import ExtentMap, FileStore
from landmark.store.int8 import Int8Store, packed_shape

_ROUNDS = 31
Row = dict[str, object]


@dataclass(frozen=True)
class OffloadedReading(Reading):
    """A reading through memory whose blocks lie below the device in `kv_dtype`, slots for `host_budget` above."""

    host_budget: str = "256MB"
    kv_dtype: KvDtype | None = None

    def cache(self, config: PretrainedConfig) -> LandmarkCache:
        return LandmarkCache(config, **asdict(self.settings), host_budget=self.host_budget, kv_dtype=self.kv_dtype)


def run(options: TierInt8Options) -> Iterator[Row]:
    """Rows of fetches, then of perplexity, then of passkeys; each with blocks as they are and in int8."""
    model, tokenizer = model_and_tokenizer(options.model)
    config = model.config
    shape = BlockShape(
        key_value_heads(config), landmark_settings(config).stride, head_dim(config), head_dim(config), model.dtype
    )
    for count in (4, 32, 512):
        yield _fetched(shape, count)
    plain = Reading.of(config)
    readings = [
        OffloadedReading(plain.attention, plain.block_size, plain.settings, options.host_budget, kv_dtype)
        for kv_dtype in (None, "int8")
    ]
    if options.windows:
        yield _perplexity(model, tokenizer, readings, options)
    if options.samples:
        yield _passkeys(model, tokenizer, readings, options)


def _fetched(shape: BlockShape, count: int) -> Row:
    """Median time to fetch a block of one head from a file in the system's cache, `count` at once."""
    total, generator = 4 * count, np.random.default_rng(0)
    stores = {"as_it_is": FileStore([ExtentMap()]), "int8": Int8Store(FileStore([ExtentMap()]))}
    blocks = [torch.randn(shape.heads, total, shape.stride, width).to(shape.dtype) for width in (shape.key_dim,) * 2]
    for store in stores.values():
        store.append(0, *blocks)
    slots = [torch.empty(1, shape.heads, count, *x.shape[2:], dtype=x.dtype) for x in blocks]
    laps: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(_ROUNDS):
        chosen, zeros = np.sort(generator.choice(total, count, replace=False)), np.zeros(count, np.int64)
        for name, store in stores.items():
            start = time.perf_counter()
            store.fetch(CacheMisses(zeros, zeros, chosen, np.arange(count)), *slots)
            laps[name].append((time.perf_counter() - start) * 1e6 / count)
    row: Row = {"fetched_at_once": count}
    for name, kept in (("as_it_is", shape), ("int8", packed_shape(shape))):
        row |= {f"{name}_bytes": kept.piece_bytes, f"{name}_us": round(statistics.median(laps[name]), 1)}
    return row


def _perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    readings: list[OffloadedReading],
    options: TierInt8Options,
) -> Row:
    """Perplexity of both, and the paired difference in nats a token with 1.96 standard errors over windows."""
    documents = [encode(tokenizer, read_text(path)).ids.numpy() for path in options.texts or (book_path(),)]
    windows = perplexity.cut_windows(documents, options.length, options.windows)
    as_it_is, int8 = (perplexity.score(model, windows, perplexity.Setting(one, options.length)) for one in readings)
    figures = perplexity.paired(int8, as_it_is)
    error = figures["difference_se"]
    return {
        "windows": figures["windows"],
        "length": options.length,
        "as_it_is_perplexity": round(figures["against_perplexity"], 4),
        "int8_perplexity": round(figures["perplexity"], 4),
        "difference_nats": round(figures["difference"], 6),
        "difference_interval": None if error is None else round(1.96 * error, 6),
        "as_it_is_seconds": round(as_it_is.seconds, 1),
        "int8_seconds": round(int8.seconds, 1),
    }


def _passkeys(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    readings: list[OffloadedReading],
    options: TierInt8Options,
) -> Row:
    """Passkeys that both find, at even depths of the package's book."""
    prompts = passkey.PasskeyPrompts(tokenizer, encode(tokenizer, read_text(book_path())).ids)
    prompts.check_length(options.passkey_length)
    found = [
        sum(
            one.correct
            for one in passkey.run(
                model, prompts, reading, options.passkey_length, range(options.samples), options.samples
            )
        )
        for reading in readings
    ]
    return {
        "passkeys": options.samples,
        "passkey_length": options.passkey_length,
        "as_it_is_found": found[0],
        "int8_found": found[1],
    }
