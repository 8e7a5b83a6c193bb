"""A model of transformers as a contender of `python -m benchmarks laptop`, in a process of its own.

Reads lines of JSON, {"call": "start" | "read" | "decode", "count": tokens}, and answers each with a line.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import landmark
from benchmarks.laptop import FULL, INT8, NO_MEMORY, Setup
from landmark.hf.compat import cache_kwargs
from landmark.hf.loading import read_weights

_WARM_UP = 64  # tokens; loads compiled loops


class Reader:
    """A converted model that reads through memory or without it, or the original one."""

    def __init__(self, setup: Setup) -> None:
        load = read_weights if setup.method == FULL else landmark.from_pretrained
        numbers = {"weights": INT8, "dtype": torch.bfloat16} if setup.dtype == INT8 else {"dtype": setup.dtype}
        self.method = setup.method
        self.model: Any = load(setup.model, **numbers).eval()
        self.ids = torch.tensor(json.loads(Path(setup.ids).read_text(encoding="utf-8")))
        self.start()

    def start(self) -> dict[str, Any]:
        """Forgets what was read."""
        self.cache: Any = DynamicCache()
        if self.method != FULL:
            retrieve = 0 if self.method == NO_MEMORY else self.model.config.landmark["retrieve"]
            self.cache = landmark.LandmarkCache(self.model.config, retrieve=retrieve)
        self.position = 0
        return {}

    def read(self, count: int) -> dict[str, Any]:
        """Prefill of the next `count` tokens."""
        piece = self._next(count)
        return {"seconds": _seconds(lambda: self._read(piece))}

    def decode(self, count: int) -> dict[str, Any]:
        """One step for each of the next `count` tokens, the most likely next token of each computed."""
        return {"seconds": [_seconds(lambda one=one: self._step(one)) for one in self._next(count).split(1)]}

    def _next(self, count: int) -> Tensor:
        self.position += count
        return self.ids[self.position - count : self.position]

    @torch.no_grad()
    def _read(self, piece: Tensor) -> None:
        if self.method == FULL:
            self.model.base_model(input_ids=piece[None], **cache_kwargs(self.model.base_model, self.cache))
        else:
            landmark.read(self.model, piece, self.cache)

    @torch.no_grad()
    def _step(self, token: Tensor) -> None:
        self.model(input_ids=token[None], **cache_kwargs(self.model, self.cache)).logits[:, -1].argmax(-1)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(setup: Setup) -> None:
    """Answers until the input ends."""
    torch.set_num_threads(setup.threads)
    reader = Reader(setup)
    reader.read(min(_WARM_UP, len(reader.ids) - 2))
    reader.decode(2)
    print(json.dumps({"release": f"torch {torch.__version__}"}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        arguments = [asked["count"]] if "count" in asked else []
        print(json.dumps(getattr(reader, asked["call"])(*arguments)), flush=True)


if __name__ == "__main__":
    try:
        main(Setup(**json.loads(sys.argv[1])))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}), flush=True)
        raise
