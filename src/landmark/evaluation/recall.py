"""Recall tasks: facts like those of training, by other seeds, hidden in a long text and asked for."""

import re
from collections.abc import Iterable
from functools import partial

import numpy as np

from landmark.data import chat
from landmark.data.chat import KINDS, NOT_MENTIONED, Facts, marked
from landmark.data.recall import passkey_question, passkey_statement, random_key, random_name
from landmark.evaluation.tasks import Draft, Group, Hidden, Task

OTHERS = ("named", "facts", "absent")  # kinds with one more fact in the text, which is not asked for
PASSKEY, ABSENT = "passkey", "absent"
NAMES = (*KINDS, ABSENT)
_ANSWER_TOKENS = {"passkey": 24, "values": 80, "queries": 100}
# "is not mentioned", "does not say", "There is no mention of": a negation and such a word in one sentence.
_NOT_MENTIONED = re.compile(
    r"(\b(not|no|nowhere|never)\b|n['\u2019]t\b)[^.!?]*\b(mention|say|said|state|specif|tell|told|provide|given|contain)",
    re.IGNORECASE,
)
BEFORE = "Read the following text. I will ask you about it.\n\n"
LEAD = "\n\nAnswer from the text above. "
_ASKED_PLAINLY = " If the text does not say, the answer is: not mentioned.\nAnswer:"
# Words that statements give as values: an answer that has one where the text says nothing was made up.
_WORDS = {
    word.lower()
    for words in (chat.CITIES, chat.COLOURS, chat.ANIMALS, chat.THINGS, chat.PLACES, chat.TRADES, chat.WORDS)
    for word in words
}


def words_found(answer: str, draft: Draft) -> float:
    """Share of the references that an answer holds as whole words, in letters of any case."""
    references = dict.fromkeys(draft.references)
    found = (re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", answer, re.IGNORECASE) for reference in references)
    return sum(map(bool, found)) / len(references)


def nothing_invented(answer: str, draft: Draft) -> float:
    """1 if an answer says that it is not mentioned, and has no number and no value that the question does not have."""
    asked = set(_words(draft.question))
    invented = any(word in _WORDS or any(map(str.isdigit, word)) for word in _words(answer) if word not in asked)
    return float(bool(_NOT_MENTIONED.search(answer)) and not invented)


def _words(text: str) -> Iterable[str]:
    return re.findall(r"\w+", text.lower())


def recall(kinds: Iterable[str]) -> Group:
    """The tasks of these kinds, about one text; raises ValueError for a kind that there is not."""
    kinds = tuple(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in NAMES:
            raise ValueError(f"there is no task {kind!r}: choose of {', '.join(NAMES)}")
    tasks = [
        Task(kind, nothing_invented if kind == ABSENT else words_found, _ANSWER_TOKENS.get(kind, 48)) for kind in kinds
    ]
    return Group(tuple(tasks), partial(_drafts, kinds))


def _drafts(kinds: tuple[str, ...], rng: np.random.Generator, in_chat: bool, length: int) -> list[Draft]:
    facts = Facts(rng, random_name)  # one for all: no name is used twice
    return [_plain_passkey(rng) if kind == PASSKEY and not in_chat else _fact(kind, facts, in_chat) for kind in kinds]


def _plain_passkey(rng: np.random.Generator) -> Draft:
    """The passkey of `landmark eval passkey`."""
    key = random_key(rng)
    return Draft(Hidden((passkey_statement(key),)), passkey_question(), (key,), query=passkey_question())


def _fact(kind: str, facts: Facts, in_chat: bool) -> Draft:
    """A fact of a kind, and perhaps another one like it."""
    others = [facts.draw_kind("named" if kind == ABSENT else kind)] if kind in OTHERS else []
    fact = facts.unanswerable() if kind == ABSENT else facts.draw_kind(kind)
    answer, values = marked(fact.answer)
    hidden = Hidden(
        tuple(_set_off(line, facts.rng) for line in fact.statements),
        tuple(_set_off(line, facts.rng) for other in others for line in other.statements),
    )
    references = tuple(answer[start:stop] for start, stop in values) or (NOT_MENTIONED,)
    if in_chat:
        return Draft(hidden, f"{LEAD}{fact.question}", references, before=BEFORE, query=fact.question)
    if kind == ABSENT:
        return Draft(hidden, f"\n\n{fact.question}{_ASKED_PLAINLY}", references, query=fact.question)
    prefix = " " + answer[: values[0][0]].rstrip()
    return Draft(hidden, f"\n\n{fact.question}", references, prefix, query=fact.question)


def _set_off(statement: str, rng: np.random.Generator) -> str:
    """A statement as a paragraph of its own, or behind the sentence before it."""
    statement = marked(statement)[0]
    return f"\n\n{statement}\n\n" if rng.random() < 0.5 else f" {statement}"
