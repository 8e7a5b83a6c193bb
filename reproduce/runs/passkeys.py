"""Passkey retrieval: how a model reads a prompt, and the accuracy by length and depth."""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from landmark.data.text import read_text
from landmark.evaluation import passkey
from landmark.evaluation.reading import Reading
from landmark.hf.compat import rename_cache_argument
from landmark.hf.plain import decode
from landmark.hf.reader import chunks
from landmark.hf.tokenizer import encode
from landmark.readers.recurrent import Recurrent
from reproduce.runs.perplexities import SegmentReading
from reproduce.runs.setup import Setup
from reproduce.tables import names
from reproduce.tables.results import Results
from reproduce.trainings.small import WINDOW

BASELINE_PROMPTS = 20  # of a length; full attention over 32,768 tokens takes its time
TENTHS = 10

# How a model with this configuration reads a prompt of so many tokens.
ReadingOf = Callable[[PretrainedConfig, int], Reading | SegmentReading]


@dataclass(frozen=True)
class Measured:
    """A model, loaded on first use, and how it reads prompts; `steps` counts all steps of its training."""

    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    method: str
    steps: int
    reading: ReadingOf
    tokens_trained: int | None = None

    def key(self, table: str, setup: Setup) -> dict[str, Any]:
        """The key fields of its measurements."""
        trained = {} if self.tokens_trained is None else {"tokens_trained": self.tokens_trained}
        named = {"table": table, "method": self.method, "seed": 0, "steps": self.steps, "window": WINDOW}
        return named | {"model": f"{setup.parameters} parameters"} | trained


def landmark(config: PretrainedConfig, length: int) -> Reading:
    """Chunks of 250 tokens, two blocks opened, and the newest block in the local window."""
    return Reading.of(config, retrieve=2, chunk_size=250, local_blocks=1)


def everything(config: PretrainedConfig, length: int) -> SegmentReading:
    """Full attention over the whole prompt, of any length."""
    whole = length + passkey.DIGITS
    return SegmentReading("full", whole, lambda: Recurrent(whole, whole))


def measure(
    measured: Measured, setup: Setup, results: Results, table: str, lengths: tuple[int, ...], prompts: int
) -> None:
    """Adds a line for each length; in the table "passkey", one for each length and tenth of depth."""
    key = measured.key(table, setup)
    lines = [line for line in results.find(**key) if "accuracy" in line]
    missing = [length for length in lengths if all(line["read_length"] != length for line in lines)]
    if not missing:
        return
    model, tokenizer = measured.load()
    keys = passkey.PasskeyPrompts(tokenizer, encode(tokenizer, read_text(setup.corpora["books"].test[0])).ids)
    for length in missing:
        right = answers(model, keys, measured.reading(model.config, length), length, prompts)
        found = sum(map(sum, right.values()))
        print(f"  {measured.method}, keys in {length:,} tokens: {found} of {prompts}", file=sys.stderr, flush=True)
        by_depth = table == names.PASSKEY
        groups = right if by_depth else {None: [one for tenth in right.values() for one in tenth]}
        for tenth, group in groups.items():
            depth = {"depth": tenth} if by_depth else {}
            share = {"accuracy": sum(group) / len(group), "samples": len(group)}
            results.add(key | {"read_length": length} | depth | share | setup.fields())


def answers(
    model: PreTrainedModel, keys: passkey.PasskeyPrompts, reading: Reading | SegmentReading, length: int, prompts: int
) -> dict[float, list[bool]]:
    """Whether each passkey was found, by the tenth of the text that hides it (0.0, 0.1, ...)."""
    right: dict[float, list[bool]] = {}
    for index in range(prompts):
        prompt = keys.prompt(length, index, prompts)
        tenth = min(int(prompt.depth * TENTHS), TENTHS - 1) / TENTHS
        right.setdefault(tenth, []).append(ask(model, keys.tokenizer, prompt, reading) == prompt.key)
    return right


@torch.inference_mode()
def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: passkey.Prompt,
    reading: Reading | SegmentReading,
) -> str:
    """The model's greedy answer to the question of a prompt, of as many tokens as the passkey has."""
    ids = torch.cat((prompt.text, prompt.question))
    digits = greedy(model, ids, reading, passkey.answer_tokens(tokenizer, prompt.key))
    return str(tokenizer.decode(digits, skip_special_tokens=True)).strip()


def greedy(model: PreTrainedModel, ids: Tensor, reading: Reading | SegmentReading, count: int) -> list[int]:
    """Greedy decoding: `count` tokens that continue `ids [N]`. `generate` cannot, because readers keep no KV cache."""
    ids, options = ids.to(model.device)[None], reading.start(model.config)
    if isinstance(reading, SegmentReading) and reading.attention in ("knn", "recurrent"):
        return _greedy_in_segments(model, ids, options, reading.chunk_size, count)
    base = rename_cache_argument(model.base_model, options)
    for chunk in chunks(ids[:, :-1], reading.chunk_size or ids.shape[1]):
        model.base_model(input_ids=chunk, **base)
    return decode(model, ids[0, -1:], count, ends=(), **rename_cache_argument(model, options))


def _greedy_in_segments(
    model: PreTrainedModel, ids: Tensor, options: dict[str, Any], segment: int, count: int
) -> list[int]:
    """The same where a token sees its own segment and a memory of those before: the last segment ends with the answer.

    It is read anew for each token, so that as much is in sight as in training; with a segment for each token, a
    Memorizing Transformer would see nothing but its memory. The first segment is shorter than the others.
    """
    last = max(0, ids.shape[1] + count - segment)
    first, base = last % segment, rename_cache_argument(model.base_model, options)
    for part in (ids[:, :first], ids[:, first:last]):
        for chunk in chunks(part, segment):
            model.base_model(input_ids=chunk, **base)
    decoding = ids[:, last:]
    for _ in range(count):
        logits = model(input_ids=decoding, **copy.deepcopy(rename_cache_argument(model, options))).logits
        decoding = torch.cat((decoding, logits[:, -1:].argmax(-1)), 1)
    return decoding[0, -count:].tolist()
