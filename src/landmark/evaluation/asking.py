"""Asks a model the questions of tasks, and what the answers amount to."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from landmark.data.tokens import tokenizer_fingerprint
from landmark.evaluation.answering import Answer, Attending, ReadText
from landmark.evaluation.bm25 import Passages
from landmark.evaluation.samples import accuracy, by_depth, digest, share_interval
from landmark.evaluation.tasks import Group, Prompt, Prompts
from landmark.hf.config import is_converted
from landmark.hf.fingerprint import model_fingerprint, plain_fingerprint
from landmark.process_memory import PeakMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUND = 10  # texts of each cell that are read before those of the next one


class Cell(NamedTuple):
    """Texts of one kind: what is asked about them, plain or in a chat, and their length."""

    group: Group
    chat: bool
    length: int

    @property
    def rows(self) -> list[tuple[str, bool, int]]:
        """Task, form and length of each row of the result."""
        return [(task.name, self.chat, self.length) for task in self.group.tasks]


@dataclass(frozen=True)
class Sample:
    """An answered question.

    `read` counts the tokens of the question and its share of the text's, which several questions may have in common;
    `seconds` is the time for both and for the answer.
    """

    task: str
    chat: bool
    length: int
    index: int
    depth: float
    references: list[str]
    answer: str
    score: float
    read: float
    seconds: float
    peak_rss_mb: float

    @property
    def correct(self) -> bool:
        return self.score == 1

    @property
    def row(self) -> tuple[str, bool, int]:
        return self.task, self.chat, self.length

    @property
    def place(self) -> tuple[Any, ...]:
        return (*self.row, self.index)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def contents(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", haystack: str) -> dict[str, str]:
    """Hashes of everything that determines answers besides settings; `model` as it was loaded."""
    fingerprint = model_fingerprint if is_converted(model.config) else plain_fingerprint
    eos = getattr(model.generation_config, "eos_token_id", None)  # ends an answer
    backend: Any = tokenizer.backend_tokenizer
    return {
        "tokenizer": digest([tokenizer_fingerprint(backend), tokenizer.chat_template]),
        "model": digest([fingerprint(model), eos]),
        "haystack": digest(haystack),
    }


def order(cells: Sequence[Cell], samples: int, seed: int) -> list[tuple[Cell, int]]:
    """All texts, so that a run that ends early has read about as many of each cell, with answers at all depths."""
    indices = np.random.default_rng([seed, samples]).permutation(samples).tolist()
    starts = range(0, samples, ROUND)
    return [(cell, index) for start in starts for cell in cells for index in indices[start : start + ROUND]]


class Asker:
    """Asks `model` as `attending` says; with `passages`, about what BM25 leaves of the text."""

    def __init__(
        self, model: "PreTrainedModel", attending: Attending, prompts: Prompts, passages: Passages | None
    ) -> None:
        self.model = model
        self.attending = attending
        self.prompts = prompts
        self.passages = passages
        self._reading: tuple[int, ReadText] | None = None

    def ask(self, cell: Cell, index: int, tasks: Collection[str], progress: Callable[[int], Any]) -> Iterator[Sample]:
        """The questions of these tasks about a text; `progress` gets numbers that add up to the length of the cell."""
        prompts = self.prompts.prompts(cell.group, cell.length, index, cell.chat)
        prompts = [prompt for prompt in prompts if prompt.task.name in tasks]
        peak, unread = PeakMemory(), cell.length

        def count(tokens: int) -> None:
            nonlocal unread
            peak.sample()
            tokens = min(tokens, unread)
            unread -= tokens
            progress(tokens)

        read, answer, begun = len(prompts[0].text) / len(prompts), None, time.perf_counter()
        if self.passages is None:
            answer = self._read(cell, prompts[0], count)
        reading = (time.perf_counter() - begun) / len(prompts)
        for prompt in prompts:
            begun, own, shown = time.perf_counter(), answer, prompt
            if self.passages is not None:
                shown = self.passages.of(prompt)
                read, own = float(len(shown.text)), self._read(cell, shown, count)
            assert own is not None, "one of the two read"
            reply = self._text(own(shown), prompt, cell)
            seconds = reading + time.perf_counter() - begun
            peak.sample()
            score = prompt.task.score(reply, prompt.draft)
            yield Sample(
                *(prompt.task.name, cell.chat, cell.length, index, prompt.depth),
                *(list(prompt.draft.references), reply, score),
                *(read + len(prompt.question), seconds, peak.megabytes),
            )
        count(unread)

    def _read(self, cell: Cell, prompt: Prompt, progress: Callable[[int], Any]) -> Answer:
        length = cell.length
        if self.passages is not None:  # what is read is shorter than the text that was searched
            length = len(prompt.text) + len(prompt.question) + prompt.task.answer_tokens
        if self._reading is None or self._reading[0] != length:
            self._reading = length, self.attending.of_length(self.model, self.prompts.tokenizer, length)
        return self._reading[1](prompt.text, progress)

    def _text(self, new: list[int], prompt: Prompt, cell: Cell) -> str:
        reply = str(self.prompts.tokenizer.decode(new, skip_special_tokens=True)).strip()
        return reply.splitlines()[0] if reply and prompt.task.one_line and not cell.chat else reply


def summaries(cells: Sequence[Cell], samples: Sequence[Sample], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of all tasks, forms and lengths that have samples."""
    of_row = {row: [sample for sample in samples if sample.row == row] for cell in cells for row in cell.rows}
    return [summary(found, settings) for found in of_row.values() if found]


def summary(samples: Sequence[Sample], settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of one row: `right` is the share of answers with every reference, with its interval."""
    task, chat, length = samples[0].row
    seconds = sum(sample.seconds for sample in samples)
    low, high = share_interval(sum(sample.correct for sample in samples), len(samples))
    return {
        "task": task,
        "form": "chat" if chat else "plain",
        "length": length,
        "right": accuracy(samples),
        "low": low,
        "high": high,
        "score": sum(sample.score for sample in samples) / len(samples),
        "samples": len(samples),
        "by_depth": by_depth(samples),
        **settings,
        "tokens_per_s": sum(sample.read for sample in samples) / seconds,
        "seconds": seconds,
        "peak_rss_mb": max(sample.peak_rss_mb for sample in samples),
    }
