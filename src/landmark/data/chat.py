"""Recall tasks as conversations in a model's chat template: a message with facts hidden in its text, then questions.

Facts are of several kinds: passkeys, named values, several values of one name, chains of variables, sentences about
people. A question asks for one of them, for several at once, or for one that the text does not hold. Deterministic
given the random generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In the sentences below, {braces} mark a value that cannot be predicted; <p> is a name.
NOT_MENTIONED = "That is not mentioned in the text."
INTRODUCTIONS = (
    "",
    "",
    "Read the following text. I will ask you about it.\n\n",
    "Here is a text.\n\n",
    "Some facts are hidden in the following text. Memorize them.\n\n",
)
LEADS = ("", "", "Question: ", "Answer from the text above. ", "According to the text: ", "Based on the text above, ")


def words(listed: str) -> tuple[str, ...]:
    """The words of a string, separated by spaces."""
    return tuple(listed.split())


CITIES = words(
    "Lisbon Paris Oslo Vienna Prague Dublin Madrid Athens Cairo Lima Havana Boston Chicago Denver Seattle Toronto "
    "Sydney Kyoto Delhi Naples Geneva Warsaw Helsinki Glasgow Venice Berlin Bombay Damascus Tunis Quito Bergen Cork"
)
COLOURS = words("red green blue yellow purple orange silver golden crimson turquoise scarlet violet brown white black")
ANIMALS = words("cat dog horse raven goat parrot fox turtle rabbit donkey goose spaniel falcon pony pigeon hedgehog")
THINGS = words(
    "lantern kettle mirror violin clock basket ladder compass umbrella hammer carpet candle saddle telescope anchor "
    "blanket teapot trumpet barrel wheel bucket painting drum chess table chair piano map helmet rope"
)
PLACES = words(
    "stove doormat bed piano staircase flowerpot bench woodpile fountain table well statue mattress bridge oak hedge"
)
TRADES = words(
    "baker blacksmith surgeon lawyer teacher gardener sailor tailor printer carpenter painter miller clockmaker "
    "shepherd librarian fisherman botanist soldier pilot chemist"
)
WORDS = [*COLOURS, *ANIMALS, *THINGS, *words("amber harvest winter thunder marble meadow cobalt ember willow")]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# A noun, and the type of its value.
NOUNS = (
    ("special magic number", "number"),
    ("magic number", "number"),
    ("access code", "number"),
    ("access code", "code"),
    ("ticket number", "number"),
    ("telephone number", "number"),
    ("secret word", "word"),
    ("password", "word"),
    ("password", "code"),
    ("registration", "code"),
)
NAMED_STATEMENTS = (
    "The <n> for <p> is {<v>}.",
    "The <n> of <p> is {<v>}.",
    "Remember that the <n> for <p> is {<v>}.",
    "<p>: the <n> is {<v>}.",
    "{<v>} is the <n> for <p>.",
)
NAMED_QUESTIONS = (
    "What is the <n> for <p>?",
    "What is the <n> for <p> mentioned in the text?",
    "Tell me the <n> for <p>.",
    "What is the <n> of <p>?",
    "Which <n> does the text give for <p>?",
)
NAMED_ANSWER = "The <n> for <p> is {<v>}."
SEVERAL_STATEMENTS = ("One of the <n>s for <p> is {<v>}.", "A <n> for <p> is {<v>}.")
SEVERAL_QUESTIONS = ("What are all the <n>s for <p>?", "List the <n>s for <p> mentioned in the text.")
VARIABLE_QUESTIONS = ("What is the value of VAR <p>?", "Find the number that is assigned to VAR <p>.")
PASSKEY_STATEMENTS = (
    "The pass key is {<v>}. Remember it.",
    "The pass key is {<v>}. Remember it. {<v>} is the pass key.",
    "Do not forget: the pass key is {<v>}.",
)
PASSKEY_QUESTIONS = ("What is the pass key?", "What is the pass key mentioned in the text?", "Tell me the pass key.")
# Statements about <p>, questions, the answer, and the values to draw from.
SENTENCES: tuple[tuple[tuple[str, ...], tuple[str, ...], str, Sequence[str]], ...] = (
    (
        ("<p> lives in {<v>}.", "<p> has moved to {<v>}.", "The home of <p> is in {<v>}."),
        ("Where does <p> live?", "In which city does <p> live?"),
        "<p> lives in {<v>}.",
        CITIES,
    ),
    (
        ("<p> works as a {<v>}.", "<p> earns a living as a {<v>}.", "<p> is a {<v>} by trade."),
        ("What is the occupation of <p>?", "What does <p> do for a living?"),
        "<p> works as a {<v>}.",
        TRADES,
    ),
    (
        ("<p>'s favourite colour is {<v>}.", "Of all colours <p> loves {<v>} best."),
        ("What is <p>'s favourite colour?", "Which colour does <p> like best?"),
        "<p>'s favourite colour is {<v>}.",
        COLOURS,
    ),
    (
        ("<p> bought a {<v>} at the market.", "At the market a {<v>} was sold to <p>."),
        ("What did <p> buy at the market?", "Which thing did <p> buy?"),
        "<p> bought a {<v>} at the market.",
        THINGS,
    ),
    (
        ("<p> hid the key under the {<v>}.", "Under the {<v>} lies the key that <p> hid."),
        ("Where did <p> hide the key?", "Under what did <p> hide the key?"),
        "<p> hid the key under the {<v>}.",
        PLACES,
    ),
    (
        ("<p> owns a {<v>}.", "The pet of <p> is a {<v>}."),
        ("Which animal does <p> own?", "What pet does <p> have?"),
        "<p> owns a {<v>}.",
        ANIMALS,
    ),
    (
        ("<p> travelled to {<v>} last summer.", "Last summer a ship took <p> to {<v>}."),
        ("Where did <p> travel last summer?", "To which city did <p> travel?"),
        "<p> travelled to {<v>} last summer.",
        CITIES,
    ),
)


@dataclass(frozen=True)
class ChatFormat:
    """The text that a chat template puts around messages.

    A conversation is `begin`, a message of the user, `reply`, an answer, `again`, the next message, `reply`, ...; an
    answer ends with `end`, the first token of `again`.
    """

    begin: str
    reply: str
    again: str
    end: str

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", remedy: str = "leave recall tasks as chat out") -> "ChatFormat":
        """The format of a tokenizer.

        Raises ValueError, naming the `remedy`, where it has no template, or one that cannot express a conversation.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer has no chat template: {remedy}")
        marks = ("first-message", "first-answer", "second-message")
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        rest: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        parts: list[str] = []
        for mark in marks:
            part, found, rest = rest.partition(mark)
            if not found:
                raise ValueError(f"the chat template does not show {mark!r}: {remedy}")
            parts.append(part)
        begin, reply, again = parts
        end = str(tokenizer.eos_token or "")
        if not again.startswith(end):
            raise ValueError(f"the chat template does not close answers with the token {end!r}: set eos_token to it")
        return cls(begin, reply, again, end)


@dataclass(frozen=True)
class Fact:
    """Statements to hide in a text in this order, a question about them and its answer; values in {braces}."""

    statements: tuple[str, ...]
    question: str
    answer: str


# Kinds of facts, and the methods of `Facts` that draw them.
KINDS = {
    "passkey": "_passkey",
    "named": "_named",
    "values": "_many_values",
    "queries": "_many_names",
    "chains": "_variables",
    "facts": "_sentence",
}


class Facts:
    """Draws facts that do not contradict each other: no name is used twice.

    In half of all cases they are all of one kind, and differ in names only. `new_name` draws a name.
    """

    def __init__(self, rng: np.random.Generator, new_name: Callable[[np.random.Generator], str]) -> None:
        self.rng = rng
        self.new_name = new_name
        self.used: set[str] = set()
        kinds = (self._named, self._named, self._sentence, self._sentence, self._passkey, self._many_values)
        self.kinds = (*kinds, self._many_names, self._variables)
        if rng.random() < 0.5:
            self.kinds = (self._pick(self.kinds),)
        self.nouns = NOUNS if rng.random() < 0.5 else (self._pick(NOUNS),)
        self.sentences = SENTENCES if rng.random() < 0.5 else (self._pick(SENTENCES),)

    def draw(self) -> Fact:
        """The next fact."""
        return self._pick(self.kinds)()

    def draw_kind(self, kind: str) -> Fact:
        """The next fact of one of `KINDS`; there is one pass key, a second one is a named value."""
        return getattr(self, KINDS[kind])()

    def unanswerable(self) -> Fact:
        """A question like the others, about a name that no fact has."""
        fact = self._pick((self._named, self._sentence))()
        return Fact((), fact.question, NOT_MENTIONED)

    def _pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def _name(self) -> str:
        while True:
            name = self._pick(CITIES) if self.rng.random() < 0.3 else self.new_name(self.rng)
            if name not in self.used:
                self.used.add(name)
                return name

    def _value(self, kind: str) -> str:
        if kind == "word":
            return self._pick(WORDS)
        if kind == "code":
            letters = "".join(self._pick(LETTERS) for _ in range(self.rng.integers(2, 5)))
            return f"{letters}{self.rng.integers(100, 10000)}"
        digits = int(self.rng.integers(4, 8))
        return str(self.rng.integers(10 ** (digits - 1), 10**digits))

    def _of(self, statements: Sequence[str], questions: Sequence[str], answer: str, **drawn: str) -> Fact:
        statement, question = self._pick(statements), self._pick(questions)
        return Fact((_filled(statement, **drawn),), _filled(question, **drawn), _filled(answer, **drawn))

    def _passkey(self) -> Fact:
        if "pass key" in self.used:
            return self._named()
        self.used.add("pass key")
        return self._of(PASSKEY_STATEMENTS, PASSKEY_QUESTIONS, "The pass key is {<v>}.", v=self._value("number"))

    def _named(self) -> Fact:
        noun, kind = self._pick(self.nouns)
        drawn = {"n": noun, "p": self._name(), "v": self._value(kind)}
        return self._of(NAMED_STATEMENTS, NAMED_QUESTIONS, NAMED_ANSWER, **drawn)

    def _sentence(self) -> Fact:
        statements, questions, answer, values = self._pick(self.sentences)
        return self._of(statements, questions, answer, p=self._name(), v=self._pick(values))

    def _many_values(self) -> Fact:
        noun, kind = self._pick(self.nouns)
        name, values = self._name(), [self._value(kind) for _ in range(self.rng.integers(2, 4))]
        statement, question = self._pick(SEVERAL_STATEMENTS), self._pick(SEVERAL_QUESTIONS)
        return Fact(
            tuple(_filled(statement, n=noun, p=name, v=value) for value in values),
            _filled(question, n=noun, p=name),
            _filled("The <n>s for <p> are <all>.", n=noun, p=name, all=_joined([f"{{{value}}}" for value in values])),
        )

    def _many_names(self) -> Fact:
        noun, kind = self._pick(self.nouns)
        pairs = {self._name(): self._value(kind) for _ in range(self.rng.integers(2, 4))}
        statement = self._pick(NAMED_STATEMENTS)
        return Fact(
            tuple(_filled(statement, n=noun, p=name, v=value) for name, value in pairs.items()),
            _filled("What are the <n>s for <all>?", n=noun, all=_joined(list(pairs))),
            " ".join(_filled(NAMED_ANSWER, n=noun, p=name, v=value) for name, value in pairs.items()),
        )

    def _variables(self) -> Fact:
        chain = ["".join(self._pick(LETTERS) for _ in range(5)) for _ in range(self.rng.integers(2, 5))]
        value = self._value("number")
        statements = [f"VAR {chain[0]} = {{{value}}}."]
        statements += [f"VAR {later} = VAR {earlier}." for earlier, later in pairwise(chain)]
        question = _filled(self._pick(VARIABLE_QUESTIONS), p=chain[-1])
        return Fact(tuple(statements), question, f"The value of VAR {chain[-1]} is {{{value}}}.")


def _filled(sentence: str, **drawn: str) -> str:
    for mark, text in drawn.items():
        sentence = sentence.replace(f"<{mark}>", text)
    return sentence


def _joined(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """`text` without its braces, and the spans (start, stop) of characters that were in braces."""
    plain, values = "", []
    for number, part in enumerate(text.replace("}", "{").split("{")):
        if number % 2:
            values.append((len(plain), len(plain) + len(part)))
        plain += part
    return plain, values
