"""The opened blocks as passages of the text that was read."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from landmark.hf import Span
from landmark.hf.tokenizer import EncodedText


@dataclass(frozen=True)
class Passage:
    """A block as tokens `start:stop` and characters `first:last` of the text; `weight` is its mean gate."""

    block: int
    start: int
    stop: int
    first: int
    last: int
    weight: float
    text: str


def passages(spans: Iterable[Span], encoded: EncodedText, limit: int) -> list[Passage]:
    """The first `limit` of `spans`, with what `encoded` says there; the rest of the text is not looked at."""
    found = []
    for span in islice(spans, limit):
        first, last = encoded.characters(span.start, span.stop)
        text = encoded.text[first:last]
        found.append(Passage(span.block, span.start, span.stop, first, last, span.weight, text))
    return found
