"""What bounded memory costs: reading and decoding within budgets, reads from disk, and how predictable blocks are."""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import landmark
from benchmarks.machine import by_turn, median_ratio
from benchmarks.models import model_and_text
from benchmarks.options import TierDiskOptions, TierOverlapOptions, TierReadOptions
from landmark.store.base import BlockShape, Traffic
from landmark.store.files import SpillFile

TURN = 4096  # tokens that a cache reads before it is the next one's turn
Row = dict[str, object]


@torch.no_grad()
def read(options: TierReadOptions) -> Iterator[Row]:
    """One row per budget, the unbounded cache first; raises RuntimeError if a budget changes the logits."""
    model, past, following = _split_text(options)
    budgets = [None, *options.host_budgets.split(",")]
    caches = {budget: landmark.LandmarkCache(model.config, host_budget=budget) for budget in budgets}
    reading, decoding = defaultdict(list), defaultdict(list)
    for turn, piece in enumerate(past.split(TURN)):
        for budget in by_turn(budgets, turn):
            start = time.perf_counter()
            landmark.read(model, piece, caches[budget])
            reading[budget].append(time.perf_counter() - start)
    read_traffic = {budget: cache.traffic for budget, cache in caches.items()}
    for turn, token in enumerate(following.split(1)):
        logits = []
        for budget in by_turn(budgets, turn):
            start = time.perf_counter()
            logits.append(model(input_ids=token[None], past_key_values=caches[budget], use_cache=True).logits)
            decoding[budget].append(time.perf_counter() - start)
        if not all(torch.equal(logits[0], other) for other in logits):
            raise RuntimeError("a budget changed the logits")
    for budget, cache in caches.items():
        yield {
            "host_budget": budget,
            "kept_mb": round(cache.nbytes / 1e6, 1),
            "tokens_per_s": round(len(past) / sum(reading[budget])),
            "reading_ratio": round(median_ratio(reading[budget], reading[None]), 3),
            **_traffic("reading", read_traffic[budget], Traffic(), len(past)),
            "ms_per_decoded_token": round(statistics.median(decoding[budget]) * 1e3, 2),
            "decoding_ratio": round(median_ratio(decoding[budget], decoding[None]), 3),
            **_traffic("decoding", cache.traffic, read_traffic[budget], len(following)),
        }


def _split_text(options: TierReadOptions | TierOverlapOptions) -> tuple[PreTrainedModel, Tensor, Tensor]:
    """The model, the tokens to read, and those to decode."""
    model, _, ids = model_and_text(options)
    past, following = ids[: options.tokens], ids[options.tokens :][: options.new_tokens]
    if len(following) < options.new_tokens:
        raise ValueError(f"the text has {len(ids)} tokens: ask for fewer, or name a longer one with --text")
    return model, past, following


def _traffic(name: str, now: Traffic, before: Traffic, tokens: int) -> Row:
    requested = now.requested - before.requested
    if not requested:
        return {}
    return {
        f"{name}_hits": round((now.cache_hits - before.cache_hits) / requested, 4),
        f"{name}_blocks_requested_per_token": round(requested / tokens, 2),
        f"{name}_file_kb_per_token": round((now.file_bytes - before.file_bytes) / tokens / 1e3, 2),
    }


def disk(options: TierDiskOptions) -> Iterator[Row]:
    """Median time per block of single reads of 16 KiB, one after another, and all announced before."""
    shape = BlockShape(heads=2, stride=32, key_dim=64, value_dim=64, dtype=torch.float32)
    file = SpillFile(shape, options.folder)
    blocks = torch.randn(2, 2048, 32, 64)
    total = options.gib * (1 << 30) // shape.nbytes
    for _ in range(0, total, blocks.shape[1]):
        file.write(0, file.allocate(0, blocks.shape[1]), blocks, blocks)
    os.fsync(file.descriptor)
    room = memoryview(bytearray(shape.piece_bytes))
    keys, values = room[: shape.key_bytes], room[shape.key_bytes :]
    generator = np.random.default_rng(0)
    for count in (4, 32, 512):
        for cached in (False, True):
            for announced in (False, True):
                laps = []
                for _ in range(11):
                    records = np.sort(generator.choice(total, count, replace=False)).tolist()
                    os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    for record in records if cached else ():
                        file.read(0, 0, record, keys, values)
                    start = time.perf_counter()
                    for record in records if announced else ():
                        file.prefetch(0, 0, record)
                    for record in records:
                        file.read(0, 0, record, keys, values)
                    laps.append((time.perf_counter() - start) * 1e6 / count)
                row = {"blocks": count, "cached": cached, "announced": announced}
                yield row | {"us_per_block": round(statistics.median(laps), 1)}


@torch.no_grad()
def overlap(options: TierOverlapOptions) -> Iterator[Row]:
    """Of the blocks that a layer opens for a token: the share opened for the token before, and by earlier layers."""
    model, past, following = _split_text(options)
    cache = landmark.read(model, past)
    cache.start_trace()
    for token in following.split(1):
        model(input_ids=token[None], past_key_values=cache, use_cache=True)
    opened = {layer: blocks[0] for layer, blocks in cache.trace().blocks.items() if layer}
    shares = defaultdict(list)
    for step in range(1, len(following)):
        earlier, earlier_new = set(), set()
        for layer, blocks in opened.items():
            before, now = (set(blocks[:, t].flatten().tolist()) - {-1} for t in (step - 1, step))
            shares[layer, "opened_for_the_token_before"].append(len(now & before) / len(now))
            if earlier:
                shares[layer, "opened_by_earlier_layers"].append(len(now & earlier) / len(now))
            if earlier and now - before:
                new = now - before
                shares[layer, "new_and_new_in_earlier_layers"].append(len(new & earlier_new) / len(new))
            earlier |= now
            earlier_new |= now - before
    for (layer, name), values in shares.items():
        yield {"layer": layer, name: round(statistics.mean(values), 3)}
