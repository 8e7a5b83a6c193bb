"""What bounded memory costs: reading and decoding with budgets, disks, and how far one layer tells what the next wants.

    python benchmarks/tiers.py read [--budgets 16MB,64MB,256MB] [--tokens 100000] [--decoded 500]
    python benchmarks/tiers.py disk [--directory DIR] [--gib 1]
    python benchmarks/tiers.py overlap [--tokens 100000] [--decoded 500]

All take --threads (1), the first and the last also --model and --text. `read` lets caches with all blocks in memory and
with each of the budgets read the same text, a few chunks at a time and by turns, then decode; it fails if their logits
differ in a single bit. `disk` reads blocks of a spill file at random places, with the file in the system's cache and
without. `overlap` compares the blocks that layers open. Prints a line of JSON for each row.
"""

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import landmark
from landmark.assets import book_path, model_path
from landmark.hf.tokenizer import encode, load_tokenizer
from landmark.store.base import BlockShape, Traffic
from landmark.store.files import SpillFile

TURN = 4096  # tokens that a cache reads before it is the next one's turn
Caches = dict[str | None, landmark.LandmarkCache]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("read", "disk", "overlap"))
    parser.add_argument("--budgets", default="16MB,64MB,256MB")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--decoded", type=int, default=500)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--gib", type=int, default=1)
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--text", type=Path, default=book_path())
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "disk":
        disk(options.directory, options.gib)
        return
    model = landmark.from_pretrained(options.model)
    ids = encode(load_tokenizer(options.model, model), options.text.read_text(encoding="utf-8")).ids
    past, asked = ids[: options.tokens], ids[options.tokens :][: options.decoded]
    if len(asked) < options.decoded:
        raise SystemExit(f"{options.text} has {len(ids)} tokens: ask for fewer, or name a longer text")
    with torch.no_grad():
        if options.what == "read":
            compare(model, past, asked, options.budgets.split(","))
        else:
            overlap(model, past, asked)


def compare(model: PreTrainedModel, past: Tensor, asked: Tensor, budgets: list[str]) -> None:
    caches: Caches = {None: landmark.LandmarkCache(model.config)}
    caches |= {budget: landmark.LandmarkCache(model.config, host_budget=budget) for budget in budgets}
    reading, decoding = defaultdict(list), defaultdict(list)
    for turn, piece in enumerate(past.split(TURN)):
        for budget, cache in by_turns(caches, turn):
            start = time.perf_counter()
            landmark.read(model, piece, cache)
            reading[budget].append(time.perf_counter() - start)
    read_traffic = {budget: cache.traffic for budget, cache in caches.items()}
    for turn, token in enumerate(asked.split(1)):
        logits = []
        for budget, cache in by_turns(caches, turn):
            start = time.perf_counter()
            logits.append(model(input_ids=token[None], past_key_values=cache, use_cache=True).logits)
            decoding[budget].append(time.perf_counter() - start)
        if not all(torch.equal(logits[0], other) for other in logits):
            raise SystemExit("a budget changed the logits")
    for budget, cache in caches.items():
        row = {
            "host_budget": budget,
            "kept_mb": round(cache.nbytes / 1e6, 1),
            "tokens_per_s": round(len(past) / sum(reading[budget])),
            "reading_ratio": ratio(reading[budget], reading[None]),
            **traffic_row("reading", read_traffic[budget], Traffic(), len(past)),
            "ms_per_decoded_token": round(statistics.median(decoding[budget]) * 1e3, 2),
            "decoding_ratio": ratio(decoding[budget], decoding[None]),
            **traffic_row("decoding", cache.traffic, read_traffic[budget], len(asked)),
        }
        print(json.dumps(row), flush=True)


def ratio(times: list[float], others: list[float]) -> float:
    """The median over turns of what one took beside the other: a machine that slows down slows down both."""
    return round(statistics.median(a / b for a, b in zip(times, others, strict=True)), 3)


def by_turns(caches: Caches, turn: int) -> list[tuple[str | None, landmark.LandmarkCache]]:
    """All contenders, each time begun by the next one."""
    first = turn % len(caches)
    return [*caches.items()][first:] + [*caches.items()][:first]


def traffic_row(name: str, now: Traffic, before: Traffic, tokens: int) -> dict[str, float]:
    wanted = now.requested - before.requested
    if not wanted:
        return {}
    return {
        f"{name}_hits": round((now.cache_hits - before.cache_hits) / wanted, 4),
        f"{name}_blocks_wanted_per_token": round(wanted / tokens, 2),
        f"{name}_file_kb_per_token": round((now.file_bytes - before.file_bytes) / tokens / 1e3, 2),
    }


def disk(directory: Path | None, gib: int) -> None:
    """Reads of single pieces of 16 KiB, one after another, and all announced before."""
    shape = BlockShape(heads=2, stride=32, key_dim=64, value_dim=64, dtype=torch.float32)
    file = SpillFile(shape, directory)
    blocks = torch.randn(2, 2048, 32, 64)
    total = gib * (1 << 30) // shape.nbytes
    for _ in range(0, total, blocks.shape[1]):
        file.write(0, file.place(0, blocks.shape[1]), blocks, blocks)
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
                        file.announce(0, 0, record)
                    for record in records:
                        file.read(0, 0, record, keys, values)
                    laps.append((time.perf_counter() - start) * 1e6 / count)
                row = {"blocks": count, "cached": cached, "announced": announced}
                print(json.dumps(row | {"us_per_block": round(statistics.median(laps), 1)}), flush=True)


def overlap(model: PreTrainedModel, past: Tensor, asked: Tensor) -> None:
    """Of the blocks that a layer opens for a token: how many did it open for the token before, and other layers now?

    The first layer is left out: its landmark keys are constant, and it opens the newest blocks.
    """
    cache = landmark.read(model, past)
    cache.start_trace()
    for token in asked.split(1):
        model(input_ids=token[None], past_key_values=cache, use_cache=True)
    opened = {layer: blocks[0] for layer, blocks in cache.trace().blocks.items() if layer}
    shares = defaultdict(list)
    for step in range(1, len(asked)):
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
        print(json.dumps({"layer": layer, name: round(statistics.mean(values), 3)}), flush=True)


if __name__ == "__main__":
    main()
