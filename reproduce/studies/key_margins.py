"""Retrieval margins: how far a passkey's block outscores all other blocks, for each head that retrieves it."""

import json
import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import landmark
from benchmarks.long_context import mask, stated_passkeys, unmask
from landmark.assets import model_path
from landmark.contexts.context import Context
from landmark.data.recall import passkey_question
from landmark.hf.tokenizer import encode, load_tokenizer
from landmark.index.base import Index
from landmark.index.delegating import Delegating
from landmark.index.options import IndexOptions
from landmark.memory import LayerMemory
from reproduce.studies.options import KeyMarginsOptions

SEEN = 60  # best blocks of a query among which its passkey's block is looked for

Margins = dict[tuple[int, int], list[list[float]]]  # by layer and head: for each passkey, the margins of its digits


class Watched(Delegating):
    """An index that keeps the best blocks of its last search: `found`, scores and numbers `[H, SEEN]`."""

    def __init__(self, inner: Index) -> None:
        self.inner = inner
        self.found: tuple[Tensor, Tensor]

    def search(self, query: Tensor, k: int, upto: list[int]) -> tuple[Tensor, Tensor]:
        scores, numbers = self.inner.search(query, max(k, SEEN), upto)
        order = scores.argsort(dim=-1, descending=True)
        self.found = scores.gather(-1, order)[0, :, -1], numbers.gather(-1, order)[0, :, -1]
        return self.inner.search(query, k, upto)

    def fork(self) -> "Watched":
        return Watched(self.inner.fork())


def run(options: KeyMarginsOptions) -> int:
    """Prints the margins."""
    torch.set_num_threads(options.threads)
    folder = model_path() if options.model is None else options.model
    model = landmark.from_pretrained(folder)
    tokenizer = load_tokenizer(folder, model)
    context = Context.open(options.context, model, tokenizer, host_budget="256MB", index=IndexOptions("auto"))
    keys, margins, right = stated_passkeys(context), defaultdict(list), 0
    for number, (key, blocks) in enumerate(keys):
        others = [block for other in range(len(keys)) if other != number for block in keys[other][1]]
        indexes = mask(context, [block for block in others if block not in blocks])
        for memory, _ in indexes:
            memory._index = Watched(memory._index)  # pyright: ignore[reportAttributeAccessIssue]
        right += ask(model, tokenizer, context, key, torch.tensor(blocks), margins)
        unmask(indexes)
    for (layer, head), of_keys in sorted(margins.items()):
        table = np.array(of_keys)
        if np.isfinite(table).mean() > 0.5:
            row = {"layer": layer, "head": head, "medians": [_rounded(x) for x in np.median(table, axis=0)]}
            print(json.dumps(row | {"lowest": _rounded(table.min()), "best": round(float((table > 0).mean()), 3)}))
    print(json.dumps({"blocks": context.blocks, "right": right, "asked": len(keys)}))
    return 0


def _rounded(margin: float) -> float | None:
    return round(float(margin), 2) if math.isfinite(margin) else None


@torch.inference_mode()
def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    context: Context,
    key: str,
    blocks: Tensor,
    margins: Margins,
) -> bool:
    """Adds the margins of one passkey; returns whether the model predicts every digit correctly."""
    cache = context.cache.fork()
    watched = [memory for memory in cache.memories if isinstance(memory, LayerMemory)][1:]
    digits = encode(tokenizer, key, continues=True).ids
    asked, right = encode(tokenizer, passkey_question(), continues=True).ids, True
    of_key: dict[tuple[int, int], list[float]] = defaultdict(list)
    for digit in digits:
        right &= bool(model(input_ids=asked[None], past_key_values=cache).logits[0, -1].argmax() == digit)
        for layer, memory in enumerate(watched, 1):
            in_memory: Any = memory._blocks
            for head, (scores, numbers) in enumerate(zip(*in_memory._index.found, strict=True)):
                stating = torch.isin(numbers, blocks)
                # Outside the best blocks there is no margin.
                margin = scores[stating].max() - scores[~stating].max() if stating.any() else -math.inf
                of_key[layer, head].append(float(margin))
        asked = digit[None]
    for layer_and_head, found in of_key.items():
        margins[layer_and_head].append(found)
    return right
