"""Questions about *Lord Jim*, the passages that answer them, and the rules by which answers are judged."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("lord_jim.toml")
APOSTROPHES = {0x2018: "'", 0x2019: "'"}
AROUND = 300  # characters of the book shown on each side of a quote


@dataclass(frozen=True)
class Question:
    """One question: see the file for what the fields mean."""

    kind: str
    question: str
    accepted: tuple[str, ...]
    forbidden: tuple[str, ...]
    quotes: tuple[str, ...]
    offsets: tuple[int, ...]

    def right(self, answer: str) -> bool:
        """Whether an answer is right by the rules of the file."""
        return _has(answer, self.accepted) and not _has(answer, self.forbidden)

    def passage(self, book: str) -> str:
        """The quotes with the text around them, from word to word."""
        places = zip(self.offsets, self.quotes, strict=True)
        return "\n\n".join(_around(book, offset, offset + len(quote)) for offset, quote in places)

    @property
    def ends(self) -> int:
        """Character of the book behind the last quote."""
        return max(offset + len(quote) for offset, quote in zip(self.offsets, self.quotes, strict=True))


def questions() -> list[Question]:
    """All questions, in the order of the file."""
    return [_question(one) for one in tomllib.loads(FILE.read_text(encoding="utf-8"))["questions"]]


def _question(listed: dict[str, Any]) -> Question:
    fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in listed.items()}
    return Question(**fields)


def _has(answer: str, wanted: tuple[str, ...]) -> bool:
    text = _plain(answer)
    return any(re.search(rf"(?<!\w){re.escape(_plain(words))}(?!\w)", text) for words in wanted)


def _plain(text: str) -> str:
    """Lower case, single spaces and straight apostrophes."""
    return " ".join(text.lower().translate(APOSTROPHES).split())


def _around(book: str, start: int, stop: int) -> str:
    before, after = book[max(0, start - AROUND) : start], book[stop : stop + AROUND]
    return before[before.find(" ") + 1 :] + book[start:stop] + after[: after.rfind(" ")]
