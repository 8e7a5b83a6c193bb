"""Retrieval tasks made from books: passages, and queries each of which is about one of them.

Books are cut into passages of whole sentences. Some are continued by a sentence that is left out of the text and
becomes a query; in others a fact is hidden, which a sentence of the same content and a question ask for.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from landmark.data.chat import Fact, Facts, marked
from landmark.data.recall import random_name

PASSAGE_WORDS = 100  # as in the passages of Dense Passage Retrieval (Karpukhin et al. 2020)
TASKS = ("continuation", "fact", "question")
_ROOM = 2  # a passage and its continuation take fewer words than so many times PASSAGE_WORDS, of usual sentences
_QUERY_WORDS = range(6, 61)  # of a sentence that may be left out
_FACTS_OF_A_KIND = 8  # facts are drawn in groups; those of half of the groups are alike
# The end of a sentence or of a paragraph.
_CLOSING, _OPENING = r"[\"')\]\u201d\u2019]*", r"[\"'(\[\u201c\u2018]*"
_END = re.compile(rf"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?]{_CLOSING}\s+(?={_OPENING}[A-Z])|\n\s*\n")


@dataclass(frozen=True)
class Passage:
    """Characters `first:last` of the text `document`, a number."""

    document: int
    first: int
    last: int


@dataclass(frozen=True)
class Query:
    """A query of a task and the index of the passage that it is about."""

    task: str
    text: str
    passage: int


@dataclass(frozen=True)
class RetrievalTasks:
    """Texts, the passages that they consist of, in order, and queries."""

    texts: tuple[str, ...]
    passages: tuple[Passage, ...]
    queries: tuple[Query, ...]

    def passage_texts(self) -> list[str]:
        """The text of each passage."""
        return [self.texts[one.document][one.first : one.last] for one in self.passages]


def make_tasks(books: Sequence[str], passages: int, *, seed: int = 0) -> RetrievalTasks:
    """Tasks on `passages` passages, an even share of each of `books` from a random sentence on.

    Passages take turns: one is continued by a query of its own, one has a fact hidden in it (two queries), one is
    neither. Depends on nothing but the arguments. Raises ValueError for books that are too short, and where a task gets
    no query.
    """
    rng = np.random.default_rng(seed)
    facts = _facts(rng)
    texts, cut, queries = [], [], []
    for number, book in enumerate(books):
        share = passages * (number + 1) // len(books) - len(cut)
        parts = []
        left = _from_random(sentences(book), share, rng)
        for turn in range(share):
            try:
                part, asked = _passage(left, turn, rng, facts)
            except StopIteration:
                raise ValueError(
                    f"a text ends in passage {turn + 1} of {share}, for its sentences are long: give fewer passages, or"
                    " texts of prose"
                ) from None
            queries += [Query(task, text, len(cut) + turn) for task, text in asked]
            parts.append(part)
        ends = list(accumulate(map(len, parts), initial=0))
        cut += [Passage(number, first, last) for first, last in pairwise(ends)]
        texts.append("".join(parts))
    if missing := [task for task in TASKS if all(query.task != task for query in queries)]:
        raise ValueError(f"{passages} passages of these texts give no query for {missing[0]}: give more of them")
    ordered = sorted(queries, key=lambda query: TASKS.index(query.task))
    return RetrievalTasks(tuple(texts), tuple(cut), tuple(ordered))


def sentences(text: str) -> list[str]:
    """The sentences of a text with the spaces behind them; a heading or the end of a paragraph ends one, too."""
    ends = [0, *(found.end() for found in _END.finditer(text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(ends) if text[start:stop].strip()]


def _from_random(found: list[str], passages: int, rng: np.random.Generator) -> Iterator[str]:
    """The sentences from a random one on that has enough behind it for so many passages."""
    behind = np.cumsum([len(sentence.split()) for sentence in found[::-1]])[::-1]
    starts = int((behind >= _ROOM * PASSAGE_WORDS * passages).sum())
    if not starts:
        needed = _ROOM * PASSAGE_WORDS * passages
        words = int(behind[0]) if found else 0
        raise ValueError(
            f"a text has {words} words, {passages} passages of it take {needed}: give longer texts or fewer passages"
        )
    return iter(found[int(rng.integers(starts)) :])


def _passage(
    left: Iterator[str], turn: int, rng: np.random.Generator, facts: Iterator[Fact]
) -> tuple[str, list[tuple[str, str]]]:
    """The next passage of a book, and the queries about it with their tasks."""
    own: list[str] = []
    while sum(len(sentence.split()) for sentence in own) < PASSAGE_WORDS:
        own.append(next(left))
    if turn % 3 == 0:
        following = next(left)
        if len(following.split()) in _QUERY_WORDS:
            return "".join(own), [("continuation", following.strip())]
        own.append(following)
    if turn % 3 == 1:
        fact = next(facts)
        own.insert(int(rng.integers(len(own))), marked(fact.statements[0])[0] + " ")
        return "".join(own), [("fact", marked(fact.answer)[0]), ("question", fact.question)]
    return "".join(own), []


def _facts(rng: np.random.Generator) -> Iterator[Fact]:
    """Facts of one statement each, of which no two have a name in common."""
    used: set[str] = set()
    while True:
        facts = Facts(rng, random_name)
        facts.used = used
        drawn = [facts.draw() for _ in range(_FACTS_OF_A_KIND)]
        yield from (fact for fact in drawn if len(fact.statements) == 1)
