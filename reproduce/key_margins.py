"""How far the block that states a pass key stands above all others, for each head that looks for it.

    python benchmarks/long_context.py read DIR --texts books/*.txt --tokens 500000
    python benchmarks/key_margins.py DIR [--model MODEL]

For every key of a context made by `long_context.py` its digits are asked for one by one, as if those before had been
answered rightly, with the blocks of other keys hidden. The margin is the score of the stating block less that of the
best other one, in nats before the softmax, and null where it is not among the best sixty. A JSON line for each head
that mostly has it there: medians over keys of each digit's margin, the lowest of all, and how often the stating block
is the best. How many keys are answered rightly is the last line.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from long_context import HiddenIndex, hide, stated_keys, unhide
from torch import Tensor

import landmark
from landmark.assets import model_path
from landmark.contexts.context import Context
from landmark.data.recall import passkey_question
from landmark.hf.tokenizer import encode, load_tokenizer
from landmark.index.options import IndexOptions
from landmark.memory import LayerMemory

SEEN = 60  # of the best blocks of a query those that are looked through

Margins = dict[tuple[int, int], list[list[float]]]  # by layer and head, for each key the digits' margins


class Watched:
    """An index that remembers the best blocks that its last search found."""

    def __init__(self, inner: HiddenIndex) -> None:
        self.inner = inner
        self.found: tuple[Tensor, Tensor]

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        scores, numbers = self.inner.search(query, max(k, SEEN), upto)
        order = scores.argsort(dim=-1, descending=True)
        self.found = scores.gather(-1, order)[0, :, -1], numbers.gather(-1, order)[0, :, -1]
        return self.inner.search(query, k, upto)

    def fork(self) -> "Watched":
        return Watched(self.inner.fork())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = landmark.from_pretrained(options.model)
    tokenizer = load_tokenizer(options.model, model)
    context = Context.open(options.folder, model, tokenizer, host_budget="256MB", index=IndexOptions("auto"))
    keys, margins, right = stated_keys(context), defaultdict(list), 0
    for number, (key, blocks) in enumerate(keys):
        others = [block for other in range(len(keys)) if other != number for block in keys[other][1]]
        shown = hide(context, [block for block in others if block not in blocks])
        for memory, _ in shown:
            memory._blocks._index = Watched(memory._blocks._index)
        right += ask(model, tokenizer, context, key, torch.tensor(blocks), margins)
        unhide(context, shown)
    for (layer, head), of_keys in sorted(margins.items()):
        told = np.array(of_keys)
        if np.isfinite(told).mean() > 0.5:
            row = {"layer": layer, "head": head, "medians": [_told(x) for x in np.median(told, axis=0)]}
            print(json.dumps(row | {"lowest": _told(told.min()), "best": round(float((told > 0).mean()), 3)}))
    print(json.dumps({"blocks": context.blocks, "right": right, "asked": len(keys)}))


def _told(margin: float) -> float | None:
    return round(float(margin), 2) if math.isfinite(margin) else None


@torch.inference_mode()
def ask(model: Any, tokenizer: Any, context: Context, key: str, blocks: Tensor, margins: Margins) -> bool:
    """Adds the margins of one key; whether every digit would have been answered rightly."""
    cache = context.cache.fork()
    watched = [memory for memory in cache.memories if isinstance(memory, LayerMemory)][1:]
    digits = encode(tokenizer, key, continues=True).ids
    asked, right = encode(tokenizer, passkey_question(), continues=True).ids, True
    of_key: dict[tuple[int, int], list[float]] = defaultdict(list)
    for digit in digits:
        right &= bool(model(input_ids=asked[None], past_key_values=cache).logits[0, -1].argmax() == digit)
        for layer, memory in enumerate(watched, 1):
            for head, (scores, numbers) in enumerate(zip(*memory._blocks._index.found, strict=True)):
                stating = torch.isin(numbers, blocks)
                # One that is not even among the best has no margin.
                margin = scores[stating].max() - scores[~stating].max() if stating.any() else -math.inf
                of_key[layer, head].append(float(margin))
        asked = digit[None]
    for place, found in of_key.items():
        margins[place].append(found)
    return right


if __name__ == "__main__":
    main()
