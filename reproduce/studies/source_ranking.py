"""How early a block that states what was asked for stands among the sources of an answer, by three rankings."""

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from landmark.assets import adapter_path, book_path
from landmark.cli.options import load_either
from landmark.cli.output import print_table, tokens_read
from landmark.data.text import read_text
from landmark.evaluation.recall import recall
from landmark.evaluation.samples import share_interval
from landmark.evaluation.tasks import Prompt, Prompts
from landmark.hf import LandmarkCache, read
from landmark.hf.config import is_converted, landmark_settings
from landmark.hf.loading import is_gguf
from landmark.hf.ranking import Ranking
from landmark.hf.reader import answer
from reproduce.studies.options import SourceRankingOptions

KINDS = ("passkey", "named", "values", "facts")  # whose answers stand in the text word for word
AMONG = 5  # sources that `landmark ask` shows
_MARGIN = 8  # tokens on both sides of a block, in which what it states may begin or end


def run(options: SourceRankingOptions) -> int:
    """Asks about every text, and prints a row for each ranking."""
    torch.set_num_threads(options.threads)
    adapter = adapter_path() if options.adapter is None and is_gguf(options.model) else options.adapter

    def check(config: Any) -> None:
        if adapter is None and not is_converted(config):
            raise ValueError(f"{options.model} is no converted model: give --adapter, what its conversion learnt")

    model, tokenizer = load_either(options.model, adapter, check, options.numbers)
    haystack = read_text(options.haystack or book_path())
    prompts, group = Prompts(tokenizer, haystack, samples=options.samples, seed=options.seed), recall(KINDS)
    chat = bool(getattr(tokenizer, "chat_template", None))
    prompts.check_length(group, options.length, chat)
    places: dict[str, list[int]] = {}
    with tokens_read("tokens of texts", options.length * options.samples) as progress:
        for index in range(options.samples):
            for found in _places(model, tokenizer, prompts.prompts(group, options.length, index, chat), progress):
                for name, place in found.items():
                    places.setdefault(name, []).append(place)
    rows = [_row(name, found) for name, found in places.items()]
    if options.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        print_table(rows, tuple(rows[0]) if rows else ("ranking",))
    return 0


def _places(model: Any, tokenizer: Any, asked: list[Prompt], progress: Any) -> Iterator[dict[str, int]]:
    """For each question about a text the place of the first source that states the answer, from 0, by ranking."""
    cache = read(model, asked[0].text, LandmarkCache(model.config), progress=progress)
    after = Ranking.after(model, tokenizer, cache)
    rankings = {
        "mean gate of all heads": Ranking(),
        "mean gate of the known heads": Ranking(after.heads),
        "the same less background": after,
    }
    settings = landmark_settings(model.config)
    in_memory = len(asked[0].text) // settings.block_size - settings.reading.local_blocks
    for prompt in asked:
        stating = _stating(tokenizer, prompt, settings.block_size)
        if min(stating, default=in_memory) >= in_memory:
            continue
        branch = cache.fork()
        branch.start_trace()
        answer(model, prompt.question, branch, max_new_tokens=prompt.task.answer_tokens)
        trace, found = branch.trace(), {}
        for name, ranking in rankings.items():
            order = [span.block for span in ranking.spans(trace)]
            found[name] = min((order.index(block) for block in stating if block in order), default=len(order))
        yield found


def _stating(tokenizer: Any, prompt: Prompt, size: int) -> set[int]:
    """The blocks of the text that hold a reference, or a part of it."""
    found = set()
    for block in range(len(prompt.text) // size + 1):
        around: Tensor = prompt.text[max(0, block * size - _MARGIN) : (block + 1) * size + _MARGIN]
        text = tokenizer.decode(around)
        if any(reference in text for reference in prompt.draft.references):
            found.add(block)
    return found


def _row(name: str, places: list[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"ranking": name, "questions": len(places)}
    for column, within in (("first", 1), (f"among_{AMONG}", AMONG)):
        right = sum(place < within for place in places)
        low, high = share_interval(right, len(places))
        row |= {column: right, f"{column}_low": round(low, 3), f"{column}_high": round(high, 3)}
    return row
