"""Tasks that ask about long texts: what is stated, what is asked, and prompts of an exact length made of them."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landmark.data.chat import ChatFormat
from landmark.data.encoder import TextEncoder
from landmark.evaluation.samples import depths
from landmark.hf.tokenizer import bos_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCES = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)\]]*(?=\s)")  # their ends
_LINES = re.compile(r"(?<=\n)")


@dataclass(frozen=True)
class Hidden:
    """A text around statements: `asked` are those that the question is about, `others` are like them.

    The depths of `asked` are spread evenly around the text from the depth of the sample on, and keep the order of the
    statements; those of `others` are random. They stand between sentences of the haystack, or between the lines that
    `filler` gives for so many tokens.
    """

    asked: tuple[str, ...]
    others: tuple[str, ...] = ()
    filler: Callable[[int], str] | None = None


@dataclass(frozen=True)
class Grown:
    """A text that grows with a size from `least` on: `make` gives it for a size and the depth of what is asked for.

    The size is the largest that fits a prompt, for each text anew.
    """

    make: Callable[[int, float], str]
    least: int


@dataclass(frozen=True)
class Draft:
    """A question and the text it is about, before they are cut to a length.

    A prompt is `before`, the text, and `question`, in a chat the message of the user; the answer begins with `prefix`.
    Drafts of one text begin alike. `references` is what the answer must hold, `query` what a search engine is asked.
    """

    text: Hidden | Grown
    question: str
    references: tuple[str, ...]
    prefix: str = ""
    before: str = ""
    query: str = ""


@dataclass(frozen=True)
class Task:
    """A kind of question: how an answer is scored, and how many tokens it may have.

    `score` gives the share of the references that an answer holds, from 0 to 1. With `one_line`, a plain answer ends
    with its line.
    """

    name: str
    score: Callable[[str, Draft], float]
    answer_tokens: int
    one_line: bool = True


@dataclass(frozen=True)
class Group:
    """Tasks whose questions are asked about one text, which states the facts of all of them.

    `draw` gives a draft for each task, all with a `Hidden` text or one with a `Grown` one. Its arguments are a random
    generator, whether the prompt is a chat, and its length.
    """

    tasks: tuple[Task, ...]
    draw: Callable[[np.random.Generator, bool, int], Sequence[Draft]]

    @property
    def name(self) -> str:
        return ",".join(task.name for task in self.tasks)


@dataclass(frozen=True)
class Prompt:
    """`text [N]` is read, then `question [M]`; `depth` is where a statement asked for stands, from 0 to 1.

    `context` are the tokens of `text` that a search engine may choose from.
    """

    task: Task
    draft: Draft
    depth: float
    text: Tensor
    question: Tensor
    context: range


class Haystack:
    """Text for statements to stand in: `ids [N]`, and numbers of tokens in front of which a sentence, or line, ends.

    Raises ValueError for a text without a token.
    """

    def __init__(self, encoder: TextEncoder, text: str, *, lines: bool = False) -> None:
        tokens = encoder.encode(text)
        if not len(tokens):
            raise ValueError("the haystack has no token: give a longer text")
        self.ids = tokens.ids
        self.lines = lines
        ends = np.array([found.end() for found in (_LINES if lines else _SENTENCES).finditer(text)], np.int64)
        starts = tokens.offsets[tokens.boundaries, 0]
        after = np.searchsorted(starts, ends)
        after = after[after < len(starts)]
        near = after[starts[after] - ends[: len(after)] <= 1]  # offsets may leave out the space in front of a token
        self.ends = np.unique(tokens.boundaries[near]) if len(near) else np.zeros(1, np.int64)

    def cut(self, room: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """`room` tokens from `start` on, repeated as needed, and where statements may stand.

        That is also at both ends, but for the last line: it is cut to fit, and a statement must be a line.
        """
        size = len(self.ids)
        filler = self.ids[(start + np.arange(room)) % size]
        turns = np.arange(0, room + size + 1, size)
        inside = np.unique((turns[:, None] + self.ends - start).ravel())
        return filler, np.concatenate(([0], inside[(inside > 0) & (inside < room)], [] if self.lines else [room]))


class Prompts:
    """Makes prompts of an exact length, plain or in the tokenizer's chat template.

    A length is that of the text with its longest question and the longest answer. Prompts depend on their group, the
    length, the index among `samples` and `seed` alone.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", haystack: str, *, samples: int, seed: int = 0) -> None:
        self.tokenizer = tokenizer
        backend: Any = tokenizer.backend_tokenizer
        self._texts, self._templates = TextEncoder(backend), TextEncoder(backend, template=True)
        self._opening = bos_tokens(tokenizer).ids.numpy()
        self.haystack = Haystack(self._texts, haystack)
        self.depths = depths(samples)
        self.seed = seed

    @cached_property
    def _format(self) -> ChatFormat:
        """Raises ValueError where the tokenizer has no chat template that can be used."""
        return ChatFormat.of(self.tokenizer)

    def check_length(self, group: Group, length: int, chat: bool) -> None:
        """Raises ValueError if `length` tokens have no room for the statements, a question and an answer."""
        indices = range(len(self.depths))
        least = max(self._fixed(group, self._drafts(group, length, i, chat)[0], chat) for i in indices) + 1
        if length < least:
            raise ValueError(
                f"length {length} is too short for {group.name} with a question and its answer: give {least} tokens or"
                " more"
            )

    def prompts(self, group: Group, length: int, index: int, chat: bool) -> list[Prompt]:
        """The prompts of text `index`, one for each task, `length` tokens in all."""
        drafts, rng = self._drafts(group, length, index, chat)
        head, questions = self._head(drafts[0], chat), [self._question(draft, chat) for draft in drafts]
        room = length - len(head) - self._after(group, questions)
        # Tasks take turns at the depths, so that what they ask for stands apart.
        turns = [index + number * len(self.depths) // len(drafts) for number in range(len(drafts))]
        places = [self.depths[turn % len(self.depths)] for turn in turns]
        context = self._context([draft.text for draft in drafts], places, room, rng)
        text = torch.from_numpy(np.concatenate((head, context)))
        return [
            Prompt(task, draft, place, text, torch.from_numpy(question), range(len(head), len(text)))
            for task, draft, place, question in zip(group.tasks, drafts, places, questions, strict=True)
        ]

    def _drafts(self, group: Group, length: int, index: int, chat: bool) -> tuple[Sequence[Draft], np.random.Generator]:
        rng = np.random.default_rng([self.seed, zlib.crc32(group.name.encode()), length, index])
        return group.draw(rng, chat, length), rng

    def _fixed(self, group: Group, drafts: Sequence[Draft], chat: bool) -> int:
        """Tokens that every prompt of these drafts has."""
        questions = [self._question(draft, chat) for draft in drafts]
        stated = sum(len(self._encode(text)) for draft in drafts for text in _needed(draft.text))
        return len(self._head(drafts[0], chat)) + stated + self._after(group, questions)

    def _after(self, group: Group, questions: Sequence[np.ndarray]) -> int:
        """Tokens behind the text."""
        return max(map(len, questions)) + max(task.answer_tokens for task in group.tasks)

    def _encode(self, text: str) -> np.ndarray:
        return self._texts.encode(text, continues=True).ids

    def _head(self, draft: Draft, chat: bool) -> np.ndarray:
        """Tokens in front of the text."""
        opening = self._templates.encode(self._format.begin).ids if chat else self._opening
        return np.concatenate((opening, self._encode(draft.before)))

    def _question(self, draft: Draft, chat: bool) -> np.ndarray:
        """Tokens behind the text, up to where the answer begins."""
        reply = [self._templates.encode(self._format.reply, continues=True).ids] if chat else []
        return np.concatenate([self._encode(draft.question), *reply, self._encode(draft.prefix)])

    def _context(
        self, texts: Sequence[Hidden | Grown], places: Sequence[float], room: int, rng: np.random.Generator
    ) -> np.ndarray:
        (first, *_) = texts
        if isinstance(first, Grown):
            return self._grow(first, places[0], room)
        return self._hide([text for text in texts if isinstance(text, Hidden)], places, room, rng)

    def _grow(self, text: Grown, depth: float, room: int) -> np.ndarray:
        """The text of the largest size that fits `room` tokens."""
        fitting, size = text.least, 2 * text.least
        while len(self._encode(text.make(size, depth))) <= room:
            fitting, size = size, 2 * size
        while size - fitting > 1:
            middle = (fitting + size) // 2
            fits = len(self._encode(text.make(middle, depth))) <= room
            fitting, size = (middle, size) if fits else (fitting, middle)
        return self._encode(text.make(fitting, depth))

    def _hide(
        self, texts: Sequence[Hidden], places: Sequence[float], room: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The statements in `room` tokens of text, each at the end of a sentence, those asked for at `places`."""
        placed = [
            (place, self._encode(line))
            for text, depth in zip(texts, places, strict=True)
            for place, line in zip(_around(depth, len(text.asked)), text.asked, strict=True)
        ]
        placed += [(float(rng.random()), self._encode(line)) for text in texts for line in text.others]
        room -= sum(len(ids) for _, ids in placed)
        assert room > 0, "check_length was called before"
        made = texts[0].filler
        haystack = self.haystack if made is None else Haystack(self._texts, made(room), lines=True)
        filler, ends = haystack.cut(room, int(rng.choice(haystack.ends)) if made is None else 0)
        parts, done = [], 0
        for place, ids in sorted(placed, key=lambda item: item[0]):
            stop = _nearest(ends, round(place * room))
            parts += [filler[done:stop], ids]
            done = stop
        return np.concatenate([*parts, filler[done:]])


def _needed(text: Hidden | Grown) -> tuple[str, ...]:
    """What is in the shortest text."""
    return (text.make(text.least, 0.5),) if isinstance(text, Grown) else (*text.asked, *text.others)


def _around(depth: float, count: int) -> list[float]:
    """Depths of `count` statements, spread evenly around the text from `depth` on, in text order."""
    return sorted((depth + number / count) % 1.0 if number else depth for number in range(count))


def _nearest(sorted_numbers: np.ndarray, wanted: int) -> int:
    return int(sorted_numbers[np.abs(sorted_numbers - wanted).argmin()])
