"""How reading grows with length: seconds per 1,000 tokens and memory at 16k, 64k, 256k and 1M tokens.

    python benchmarks/read_growth.py [--model DIR] [--text FILE] [--lengths 16384,65536] [--threads 2]

Reads one long text (the file, repeated) in one go. At each length it prints the time of the last 8,192 tokens
before it, the mean so far, the resident memory beyond that before reading, the bytes of keys and values kept, and the
multiply-adds per token that scoring every landmark takes at that length, beside those of the model's own weights.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

import landmark
from landmark.assets import book_path, model_path
from landmark.evaluation.process import resident_bytes
from landmark.hf.settings import text_config
from landmark.hf.tokenizer import encode, load_tokenizer

WINDOW = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--text", type=Path, default=book_path())
    parser.add_argument("--lengths", default="16384,65536,262144,1048576")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = landmark.from_pretrained(options.model)
    ids = encode(load_tokenizer(options.model, model), options.text.read_text(encoding="utf-8")).ids
    cache = landmark.LandmarkCache(model.config)
    config = text_config(model.config)
    weights = sum(p.numel() for p in model.base_model.layers.parameters())
    before, started, done = resident_bytes(), time.perf_counter(), 0
    for length in sorted(int(part) for part in options.lengths.split(",")):
        done = advance(model, ids, cache, done, length - WINDOW)
        lap = time.perf_counter()
        done = advance(model, ids, cache, done, length)
        now = time.perf_counter()
        blocks = length // cache.settings.block_size
        # The first layer's landmarks are all alike and need no scoring.
        scoring = (config.num_hidden_layers - 1) * config.num_attention_heads * config.head_dim * blocks
        row = {
            "length": length,
            "s_per_1000_tokens": (now - lap) * 1000 / WINDOW,
            "mean_s_per_1000_tokens": (now - started) * 1000 / length,
            "resident_growth_mb": (resident_bytes() - before) / 1e6,
            "kept_mb": cache.nbytes / 1e6,
            "scoring_macs_per_token": scoring,
            "weight_macs_per_token": weights,
        }
        print(json.dumps(row), flush=True)


def advance(model: PreTrainedModel, ids: torch.Tensor, cache: landmark.LandmarkCache, done: int, stop: int) -> int:
    """Reads the repeated text from token `done` to `stop`."""
    while done < stop:
        part = ids[done % len(ids) :][: min(stop - done, 65536)]
        landmark.read(model, part, cache)
        done += len(part)
    return done


if __name__ == "__main__":
    main()
