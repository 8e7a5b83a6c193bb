"""How the time of reading a token grows with what was read before.

    python benchmarks/read_growth.py [--lengths 16384,65536,262144,1048576] [--index hierarchical --recall 0.9]
    python benchmarks/read_growth.py --context DIR --turns 20

Reads one long text (the file, repeated) to each length. There it takes turns with a cache that has read the shortest
length only: each reads 2,046 tokens more, so that what others do on the machine meets both. Prints seconds per 1,000
tokens of both, by the clock and of the processor, the median ratio over turns with its quartiles, and the memory in
use. With `--context` the long text is one read before by `benchmarks/long_context.py`, and the budget is the same
for both.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

import landmark
from landmark.assets import book_path, model_path
from landmark.contexts.context import Context
from landmark.hf.tokenizer import encode, load_tokenizer
from landmark.index.options import IndexOptions
from landmark.process_memory import resident_bytes

TURN = 2046  # tokens, whole chunks of the package's model
HOST_BUDGET = "256MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--text", type=Path, default=book_path())
    parser.add_argument("--context", type=Path)
    parser.add_argument("--lengths", default="16384,65536,262144,1048576")
    parser.add_argument("--index", default="auto")
    parser.add_argument("--recall", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = landmark.from_pretrained(options.model)
    ids = encode(load_tokenizer(options.model, model), options.text.read_text(encoding="utf-8")).ids
    memory: dict[str, Any] = {"index": IndexOptions(options.index, recall=options.recall)}
    shortest, *lengths = sorted(int(part) for part in options.lengths.split(","))
    if options.context is not None:
        memory["host_budget"] = HOST_BUDGET
        context = Context.open(options.context, model, **memory)
        long, done, lengths = context.cache, context.tokens_read, [context.tokens_read]
        advance(model, ids, long, 0, TURN)  # with what a new process makes first
    else:
        long, done = landmark.LandmarkCache(model.config, **memory), 0
    for length in lengths:
        done = advance(model, ids, long, done, length)
        turns = []
        for turn in range(options.turns):
            short = landmark.LandmarkCache(model.config, **memory)
            advance(model, ids, short, 0, shortest)
            # Neither always goes first.
            order = (short, long) if turn % 2 else (long, short)
            took = {id(cache): timed(model, ids, cache, shortest) for cache in order}
            turns.append((took[id(short)], took[id(long)]))
        print(json.dumps({"tokens": length, "shortest": shortest, **summary(np.array(turns))}), flush=True)


def timed(model: PreTrainedModel, ids: torch.Tensor, cache: landmark.LandmarkCache, start: int) -> tuple[float, float]:
    """Seconds per 1,000 tokens, by the clock and of the processor, of a turn of reading."""
    clock, processor = time.perf_counter(), time.process_time()
    advance(model, ids, cache, start, start + TURN)
    return (time.perf_counter() - clock) * 1000 / TURN, (time.process_time() - processor) * 1000 / TURN


def summary(turns: np.ndarray) -> dict[str, Any]:
    """Medians of turns `[n,short and long,clock and processor]`."""
    low, ratio, high = np.quantile(turns[:, 1, 1] / turns[:, 0, 1], (0.25, 0.5, 0.75))
    named = zip(("short", "long"), np.median(turns, axis=0).tolist(), strict=True)
    return {name: {"s_per_1000_tokens": clock, "processor": processor} for name, (clock, processor) in named} | {
        "ratio": ratio,
        "quartiles": [low, high],
        "resident_mb": resident_bytes() / 1e6,
    }


def advance(model: PreTrainedModel, ids: torch.Tensor, cache: landmark.LandmarkCache, done: int, stop: int) -> int:
    """Reads the repeated text from token `done` to `stop`."""
    while done < stop:
        part = ids[done % len(ids) :][: min(stop - done, 65536)]
        landmark.read(model, part, cache)
        done += len(part)
    return done


if __name__ == "__main__":
    main()
