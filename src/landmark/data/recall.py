"""Recall tasks: keys hidden at random positions of real text and asked for later, with the kind of each token.

The passkey task is that of Mohtashami & Jaggi 2023, section 4.2. Named keys extend it to many keys in one window, which
teaches a model to discriminate between blocks. Deterministic given the random generator.
"""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from landmark.data.chat import INTRODUCTIONS, LEADS, ChatFormat, Fact, Facts, marked
from landmark.data.encoder import TextEncoder

ATTEMPTS = 100  # to draw facts that fit a window
# Share of chat questions that the text does not answer.
UNANSWERABLE = 0.1
# Kinds of tokens, which decide about their loss weights and metrics.
TEXT, TEMPLATE, HIDDEN, COPY, ANSWER, REPLY = range(6)

FIRST_NAMES = (
    "Alice Arthur Beatrice Benjamin Caroline Charles Clara Daniel Dorothea Edmund Eleanor Ernest Fanny "
    "Felix Florence George Grace Gilbert Harriet Henry Ida Isaac Jane Jasper Julia Laura Leonard Louisa "
    "Lucy Margaret Martha Matthew Miriam Nathan Nora Oliver Peter Philip Rachel Richard Robert Rosa Samuel "
    "Sarah Simon Sophia Stephen Susan Thomas Ursula Victor Walter William Winifred"
)
ONSETS = "b br c d dr f g gr h j k l m n p qu r s st t tr v w z"
VOWELS = "a e i o u ai ea ou"
CODAS = "l m n nd r s sh th"


def random_key(rng: np.random.Generator, digits: int = 5) -> str:
    """A string of `digits` digits, the first not zero."""
    return str(rng.integers(10 ** (digits - 1), 10**digits))


def random_name(rng: np.random.Generator) -> str:
    """A first name or, as often, an invented one of two or three syllables."""
    if rng.random() < 0.5:
        return _pick(rng, FIRST_NAMES)
    syllables = [_pick(rng, ONSETS) + _pick(rng, VOWELS) for _ in range(rng.integers(2, 4))]
    return ("".join(syllables) + _pick(rng, CODAS)).capitalize()


def _pick(rng: np.random.Generator, words: str) -> str:
    choices = words.split()
    return choices[rng.integers(len(choices))]


def passkey_statement(key: str) -> str:
    """The sentence that states the passkey `key`, between blank lines."""
    return f"\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n"


def passkey_question() -> str:
    """The question for the passkey, ending where its digits start.

    The space at the end belongs to the prompt: tokenizers that split digits off (that of `landmark.data.tokenizer`, and
    those of current large models) do not merge it with them.
    """
    return "\n\nWhat is the pass key? The pass key is "


def named_key_statement(name: str, key: str) -> str:
    """Like `passkey_statement`, for the key of `name`."""
    return f"\n\nThe key of {name} is {key}. Remember it. {key} is the key of {name}.\n\n"


def named_key_question(name: str) -> str:
    """Like `passkey_question`, for the key of `name`."""
    return f"\n\nWhat is the key of {name}? The key of {name} is "


@dataclass(frozen=True)
class RecallTask:
    """The density of keys in a window, and the loss weight of their answers.

    `keys` and `questions` are the ranges, both ends included, from which their numbers in a window are drawn. A key is
    asked for at a random position after its statement, possibly several times. `answer_weight` is the loss weight of
    digits that can be predicted (in answers, and where a statement repeats its key); other tokens have weight 1.

    `chat` is the share of recall windows that are a conversation in the model's chat template: `keys` facts of many
    kinds, and `questions` turns, a tenth of them unanswerable (`landmark.data.chat`).
    """

    keys: tuple[int, int] = (1, 1)
    questions: tuple[int, int] = (1, 1)
    digits: int = 5
    answer_weight: float = 5.0
    chat: float = 0.0

    def __post_init__(self) -> None:
        for name in ("keys", "questions"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} must be two numbers, 1 <= low <= high, not {low}, {high}")
        if self.digits < 1:
            raise ValueError(f"digits must be at least 1, not {self.digits}")
        if self.answer_weight <= 0:
            raise ValueError(f"answer_weight must be above 0, not {self.answer_weight}")
        if not 0 <= self.chat <= 1:
            raise ValueError(f"chat must be from 0 to 1, not {self.chat}")


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens: `ids [n]` and the kind of each, `kinds [n]`."""

    ids: np.ndarray
    kinds: np.ndarray


class RecallWindows:
    """Generates windows of a `RecallTask`; those that are conversations need a `chat_format`.

    Raises ValueError if the largest numbers of keys and questions do not fit `length` ordinary tokens, or if the task
    needs a `chat_format` and there is none.
    """

    def __init__(
        self, task: RecallTask, tokenizer: Tokenizer, length: int, chat_format: ChatFormat | None = None
    ) -> None:
        self.task = task
        self.texts = TextEncoder(tokenizer)
        self.templates = TextEncoder(tokenizer, template=True)
        self.chat_format = chat_format
        if task.chat and chat_format is None:
            raise ValueError("recall windows as chat need a tokenizer with a chat template: leave `chat` out")
        # An invented name of average length; a window that does not fit with its longer names is drawn again.
        name, key = "Romori", "9" * task.digits
        statement = len(self.statement(name, key).ids)
        question = len(self.question(name, key).ids)
        most = task.keys[1] * statement + task.questions[1] * question
        if most > length:
            raise ValueError(
                f"{task.keys[1]} keys and {task.questions[1]} questions take {most} tokens, but a window "
                f"holds {length}; ask for fewer keys or questions, or for longer windows"
            )

    def statement(self, name: str | None, key: str) -> Piece:
        """A statement of `key`: its first occurrence, unpredictable, is `HIDDEN`, the second `COPY`."""
        text = passkey_statement(key) if name is None else named_key_statement(name, key)
        return self._piece(text, {text.index(key): HIDDEN, text.rindex(key): COPY})

    def question(self, name: str | None, key: str) -> Piece:
        """A question with its answer `key`, the digits marked `ANSWER`."""
        text = passkey_question() if name is None else named_key_question(name)
        return self._piece(f"{text}{key}.\n\n", {len(text): ANSWER})

    def window(self, filler: np.ndarray, rng: np.random.Generator) -> Piece:
        """A window of `len(filler)` tokens: the start of `filler` with statements and questions in it."""
        if self.task.chat and rng.random() < self.task.chat:
            return self._conversation(filler, rng)
        while True:
            placed = self._draw(rng)
            if sum(len(piece.ids) for _, piece in placed) <= len(filler):
                return _insert(filler, placed)

    def _draw(self, rng: np.random.Generator) -> list[tuple[float, Piece]]:
        """Statements and questions, each with its position as a fraction of the window's text."""
        task = self.task
        placed: list[tuple[float, Piece]] = []
        stated: list[tuple[float, str | None, str]] = []
        for name in self._names(rng, int(rng.integers(*task.keys, endpoint=True))):
            key, place = random_key(rng, task.digits), float(rng.random())
            stated.append((place, name, key))
            placed.append((place, self.statement(name, key)))
        for _ in range(rng.integers(*task.questions, endpoint=True)):
            place, name, key = stated[rng.integers(len(stated))]
            placed.append((float(rng.uniform(place, 1.0)), self.question(name, key)))
        return placed

    def _conversation(self, filler: np.ndarray, rng: np.random.Generator) -> Piece:
        """A message with the text, and turns about it; fewer facts if those drawn do not fit."""
        chat_format = self._format()
        keys, questions = (
            int(rng.integers(*numbers, endpoint=True)) for numbers in (self.task.keys, self.task.questions)
        )
        for _ in range(ATTEMPTS):
            facts = Facts(rng, random_name)
            stated = [facts.draw() for _ in range(keys)]
            begin = self._chat_piece(chat_format.begin + INTRODUCTIONS[rng.integers(len(INTRODUCTIONS))])
            placed = [
                (place, self._chat_piece(_set_off(statement, rng), HIDDEN))
                for fact in stated
                for place, statement in zip(sorted(rng.random(len(fact.statements))), fact.statements, strict=True)
            ]
            turns = self._turns(facts, stated, questions, rng)
            room = len(filler) - len(begin.ids) - sum(len(turn.ids) for turn in turns)
            if room >= 2 * sum(len(piece.ids) for _, piece in placed):
                text = _insert(filler[:room], placed)
                return _joined([begin, text, *turns])
            keys, questions = max(1, keys - 1), max(1, questions - 1)
        raise ValueError(f"a window of {len(filler)} tokens is too short for a conversation: make windows longer")

    def _format(self) -> ChatFormat:
        assert self.chat_format is not None, "checked with the task"
        return self.chat_format

    def _turns(self, facts: Facts, stated: list[Fact], questions: int, rng: np.random.Generator) -> list[Piece]:
        """Questions about facts in random order, each with its answer."""
        chat_format = self._format()
        order = rng.permutation(len(stated))[:questions]
        asked = [facts.unanswerable() if rng.random() < UNANSWERABLE else stated[number] for number in order]
        pieces, between = [], "\n\n" + LEADS[rng.integers(len(LEADS))]
        for fact in asked:
            pieces.append(self._chat_piece(between + fact.question + chat_format.reply))
            if fact.statements:
                pieces.append(self._chat_piece(fact.answer, ANSWER, others=REPLY))
            else:
                pieces.append(self._chat_piece("{" + fact.answer + "}", ANSWER))
            pieces.append(self._chat_piece(chat_format.end, others=REPLY))
            between = chat_format.again.removeprefix(chat_format.end)
        return pieces

    def _chat_piece(self, text: str, value: int = TEMPLATE, others: int = TEMPLATE) -> Piece:
        """Tokens of `text`, of the kind `value` within braces and `others` elsewhere."""
        plain, values = marked(text)
        tokens = self.templates.encode(plain, continues=True)
        kinds = np.full(len(tokens), others, np.uint8)
        for start, stop in values:
            kinds[(tokens.offsets[:, 0] < stop) & (tokens.offsets[:, 1] > start)] = value
        return Piece(tokens.ids, kinds)

    def _names(self, rng: np.random.Generator, count: int) -> list[str | None]:
        """`count` names without repetition; None, the passkey, is one of them in half of the windows."""
        names: list[str | None] = [None] if rng.random() < 0.5 else []
        while len(names) < count:
            name = random_name(rng)
            if name not in names:
                names.append(name)
        return names

    def _piece(self, text: str, keys: dict[int, int]) -> Piece:
        """Tokens of `text` within another text; `keys` gives the kind of each key by its first character."""
        tokens = self.texts.encode(text, continues=True)
        kinds = np.full(len(tokens), TEMPLATE, np.uint8)
        for start, kind in keys.items():
            stop = start + self.task.digits
            kinds[(tokens.offsets[:, 0] < stop) & (tokens.offsets[:, 1] > start)] = kind
        return Piece(tokens.ids, kinds)


def _set_off(statement: str, rng: np.random.Generator) -> str:
    """A statement as a paragraph of its own, or in the middle of one."""
    return f"\n\n{statement}\n\n" if rng.random() < 0.5 else f" {statement} "


def _joined(pieces: list[Piece]) -> Piece:
    return Piece(np.concatenate([piece.ids for piece in pieces]), np.concatenate([piece.kinds for piece in pieces]))


def _insert(filler: np.ndarray, placed: list[tuple[float, Piece]]) -> Piece:
    """Inserts pieces at fractions of the filler that remains; equal fractions keep their order."""
    room = len(filler) - sum(len(piece.ids) for _, piece in placed)
    assert room >= 0, "the pieces were drawn until they fit"
    ids, kinds, done = [], [], 0
    for place, piece in sorted(placed, key=lambda item: item[0]):
        stop = int(place * room)
        ids += [filler[done:stop], piece.ids]
        kinds += [np.full(stop - done, TEXT, np.uint8), piece.kinds]
        done = stop
    ids.append(filler[done:room])
    kinds.append(np.full(room - done, TEXT, np.uint8))
    return Piece(np.concatenate(ids).astype(np.int64), np.concatenate(kinds))
