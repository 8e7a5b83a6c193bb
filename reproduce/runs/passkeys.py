"""Pass keys of the model of `conversion`, of its ancestor, and of the peers of landmark attention."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landmark.data.text import read_text
from landmark.evaluation import passkey
from landmark.evaluation.reading import Reading
from reproduce.runs.segments import SegmentReading
from reproduce.runs.setup import Setup
from landmark.hf.compat import rename_cache_argument
from landmark.hf.reader import chunks, decode_greedily
from landmark.hf.tokenizer import encode
from landmark.readers.recurrent import Recurrent
from reproduce.trainings.small import WINDOW
from reproduce.tables import words
from reproduce.tables.results import Results

PEER_PROMPTS = 20  # of a length; full attention over 32,768 tokens takes its time
TENTHS = 10

Way = Callable[[Any, int], Reading | SegmentReading]  # of a model's configuration and the length of a prompt


@dataclass(frozen=True)
class Asked:
    """A model, loaded when it is needed, and how it is asked for keys; `steps` are all steps of its training."""

    load: Callable[[], tuple[Any, Any]]
    method: str
    steps: int
    way: Way
    tokens_trained: int | None = None

    def key(self, table: str, setup: Setup) -> dict[str, Any]:
        """The fields by which the report knows its lines."""
        told = {} if self.tokens_trained is None else {"tokens_trained": self.tokens_trained}
        named = {"table": table, "method": self.method, "seed": 0, "steps": self.steps, "window": WINDOW}
        return named | {"model": f"{setup.weights} weights"} | told


def landmark(config: Any, length: int) -> Reading:
    """Chunks of 250 tokens, two blocks opened, the newest in sight while an answer is written."""
    return Reading.of(config, retrieve=2, chunk_size=250, local_blocks=1)


def everything(config: Any, length: int) -> SegmentReading:
    """Full attention over all of a prompt, however long."""
    whole = length + passkey.DIGITS
    return SegmentReading("full", whole, lambda: Recurrent(whole, whole))


def measure(asked: Asked, setup: Setup, results: Results, table: str, lengths: tuple[int, ...], prompts: int) -> None:
    """Adds a line for each length, and in the table of pass keys for each tenth of the text that held keys."""
    key = asked.key(table, setup)
    lines = [line for line in results.find(**key) if "accuracy" in line]
    missing = [length for length in lengths if all(line["read_length"] != length for line in lines)]
    if not missing:
        return
    model, tokenizer = asked.load()
    keys = passkey.PasskeyPrompts(tokenizer, encode(tokenizer, read_text(setup.corpora["books"].test[0])).ids)
    for length in missing:
        right = answers(model, keys, asked.way(model.config, length), length, prompts)
        found = sum(map(sum, right.values()))
        print(f"  {asked.method}, keys in {length:,} tokens: {found} of {prompts}", file=sys.stderr, flush=True)
        by_depth = table == words.PASS_KEY
        groups = right if by_depth else {None: [one for tenth in right.values() for one in tenth]}
        for tenth, group in groups.items():
            depth = {"depth": tenth} if by_depth else {}
            share = {"accuracy": sum(group) / len(group), "samples": len(group)}
            results.add(key | {"read_length": length} | depth | share | setup.fields())


def answers(
    model: Any, keys: passkey.PasskeyPrompts, reading: Reading | SegmentReading, length: int, prompts: int
) -> dict[float, list[bool]]:
    """Which keys were found, by the tenth of the text in which they stood (0.0, 0.1, ...)."""
    right: dict[float, list[bool]] = {}
    for index in range(prompts):
        prompt = keys.prompt(length, index, prompts)
        tenth = min(int(prompt.depth * TENTHS), TENTHS - 1) / TENTHS
        right.setdefault(tenth, []).append(ask(model, keys.tokenizer, prompt, reading) == prompt.key)
    return right


@torch.inference_mode()
def ask(model: Any, tokenizer: Any, prompt: passkey.Prompt, reading: Reading | SegmentReading) -> str:
    """What the model takes the key to be: as many most likely tokens behind the question as the key has."""
    ids = torch.cat((prompt.text, prompt.question))
    digits = passkey.answer_tokens(tokenizer, prompt.key)
    return tokenizer.decode(continuation(model, ids, reading, digits), skip_special_tokens=True).strip()


def continuation(model: Any, ids: Tensor, reading: Reading | SegmentReading, count: int) -> list[int]:
    """The `count` most likely tokens behind `ids [N]`, one after the other."""
    ids, options = ids.to(model.device)[None], reading.start(model.config)
    base = rename_cache_argument(model.base_model, options)
    for chunk in chunks(ids[:, :-1], reading.chunk_size):
        model.base_model(input_ids=chunk, **base)
    return decode_greedily(model, ids[:, -1:], count, **rename_cache_argument(model, options))[0].tolist()
