"""The 13 tasks of RULER (Hsieh et al. 2024, arXiv 2404.06654): texts, questions, answer lengths and scores as there.

The wording is fixed by the published definition (NVIDIA/RULER: scripts/data/synthetic/constants.py, synthetic.yaml, and
the scripts of each task), which is quoted here as data. What differs is said in docs/evaluation.md.
"""

import json
import re
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from landmark.evaluation.tasks import Draft, Group, Grown, Hidden, Task

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
SHORT = 4096  # below, common words are fewer
WORD = re.compile(r"\b[a-z]{3,10}\b")
FEWEST_WORDS = 100
CHARACTERS = 6  # more than a token of these texts has, on average


def match_all(answer: str, draft: Draft) -> float:
    """Share of the references that are in an answer, in letters of any case."""
    return sum(reference.lower() in answer.lower() for reference in draft.references) / len(draft.references)


def match_part(answer: str, draft: Draft) -> float:
    """1 if any of the references is in an answer, in letters of any case."""
    return float(any(reference.lower() in answer.lower() for reference in draft.references))


@dataclass(frozen=True)
class Wording:
    """What stands in front of a text, the question behind it, and how the answer begins; with {names} to fill in."""

    before: str
    question: str
    prefix: str

    def draft(self, text: Hidden | Grown, references: Sequence[str], **values: Any) -> Draft:
        """A question about `text`, filled in."""
        question = self.question.format(**values)
        query = question.strip().removeprefix("Question: ")
        before, prefix = self.before.format(**values), self.prefix.format(**values)
        return Draft(text, question, tuple(references), prefix, before, query)

    def singular(self) -> "Wording":
        """The same for one needle, by the replacements of the definition."""
        replaced = (_replaced(part, {"Some": "A", "are all": "is", "are": "is"}) for part in vars(self).values())
        return Wording(*replaced)


def _replaced(text: str, words: dict[str, str]) -> str:
    for word, other in words.items():
        text = text.replace(word, other)
    return text


NIAH = Wording(
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. I will quiz you about"
    " the {type} afterwards.\n",
    "\nWhat are all the special magic {type} for {query} mentioned in the provided text?",
    " The special magic {type} for {query} mentioned in the provided text are",
)
VT = Wording(
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
    "\nQuestion: Find all variables that are assigned the value {value} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the"
    " value {value}, they are: ",
)
CWE = Wording(
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that"
    " appear most often.\n",
    "\nQuestion: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
)
FWE = Wording(
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared"
    " coded words. ",
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently"
    " appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
)
_ONLY = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
QA = Wording(f"{_ONLY}\n\nThe following are given documents.\n\n", f"\n\n{_ONLY}\n\nQuestion: {{question}}", " Answer:")


# Needles.


@dataclass(frozen=True)
class Needles:
    """A task of needles: numbers of keys, of values of a key and of keys asked for, and the types of both.

    `haystack` is "essay" (the haystack of the evaluation), "noise" or "needle" (others like them).
    """

    haystack: str
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_type: str = "words"
    value_type: str = "numbers"

    def draw(self, words: Sequence[str], rng: np.random.Generator) -> Draft:
        """Needles, those of the keys asked for first, and the question."""
        new = {"words": partial(_compound, words, rng), "numbers": partial(_number, rng), "uuids": partial(_uuid, rng)}
        new_key, new_value = new[self.key_type], new[self.value_type]
        stated: dict[str, list[str]] = {}
        while len(stated) < max(self.keys, self.queries):
            stated[new_key()] = [new_value() for _ in range(self.values)]
        asked = list(stated)[: self.queries]
        wanted = [value for key in asked for value in stated[key]]
        needles = [self._needle(key, value) for key, values in stated.items() for value in values]
        text = self._text(needles, len(wanted), new_key, new_value)
        query = f"{', '.join(asked[:-1])}, and {asked[-1]}" if len(asked) > 1 else asked[0]
        if len(wanted) > 1:
            return NIAH.draft(text, wanted, type=self.value_type, query=query)
        return NIAH.singular().draft(text, wanted, type=self.value_type.removesuffix("s"), query=query)

    def _text(
        self, needles: Sequence[str], asked: int, new_key: Callable[[], str], new_value: Callable[[], str]
    ) -> Hidden:
        if self.haystack == "essay":
            lines = [f" {needle}" for needle in needles]
            return Hidden(tuple(lines[:asked]), tuple(lines[asked:]))

        def more(tokens: int) -> str:
            made, characters = [], 0
            while characters < CHARACTERS * tokens:
                made.append(f"{self._needle(new_key(), new_value())}\n")
                characters += len(made[-1])
            return "".join(made)

        lines = tuple(f"{needle}\n" for needle in needles)
        return Hidden(lines, filler=_noise if self.haystack == "noise" else more)

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.value_type} for {key} is: {value}."


def _noise(tokens: int) -> str:
    return NOISE * (tokens * CHARACTERS // len(NOISE) + 1)


def _compound(words: Sequence[str], rng: np.random.Generator) -> str:
    one, other = rng.integers(len(words), size=2).tolist()
    return f"{words[one]}-{words[other]}"


def _number(rng: np.random.Generator) -> str:
    return str(rng.integers(10**6, 10**7))


def _uuid(rng: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


# Variable tracking, with an example of the task in front.

HOPS = 4
EXAMPLE_LINES = 14  # of noise in the example: some 500 tokens in all


def _variables(rng: np.random.Generator, length: int) -> Draft:
    example, names, value = _chain(rng, 3)
    lines = [NOISE] * EXAMPLE_LINES
    for number, place in enumerate(np.sort(rng.choice(EXAMPLE_LINES, len(example), replace=False))):
        lines.insert(int(place) + number, example[number])
    shown = VT.draft(Hidden(()), names, value=value, count=len(names))
    example = f"{shown.before}{''.join(lines).rstrip()}{shown.question}{shown.prefix} {' '.join(names)}\n\n"
    chain, names, value = _chain(rng, 5)
    draft = VT.draft(Hidden(tuple(chain), filler=_noise), names, value=value, count=len(names))
    return replace(draft, before=example + draft.before)


def _chain(rng: np.random.Generator, letters: int) -> tuple[list[str], list[str], str]:
    """Lines that assign a value to a variable and this to others one after the other, their names, and the value."""
    names: dict[str, None] = {}
    while len(names) <= HOPS:
        names["".join(rng.choice(list(string.ascii_uppercase), letters))] = None
    value = str(rng.integers(10_000, 99_999))
    lines = [f"VAR {next(iter(names))} = {value}\n"]
    lines += [f"VAR {later} = VAR {earlier} \n" for earlier, later in pairwise(names)]
    return lines, list(names), value


# Words that are common, or frequent.

COMMON = 10
ALPHA = 2.0


def _common_words(words: Sequence[str], rng: np.random.Generator, length: int) -> Draft:
    often, seldom, shown_size, shown_often, shown_seldom = (6, 1, 20, 3, 1) if length < SHORT else (30, 3, 40, 10, 3)
    shown, order = _shuffled(words, rng), _shuffled(words, rng)
    example = _numbered(_repeated(shown[:shown_size], shown_often, shown_seldom, rng))
    seed = int(rng.integers(2**32))

    def make(size: int, depth: float) -> str:
        chosen = [_nth(order, number) for number in range(size)]
        return _numbered(_repeated(chosen, often, seldom, np.random.default_rng(seed)))

    draft = CWE.draft(Grown(make, COMMON + 1), order[:COMMON])
    example = f"{draft.before}{example}{draft.question}{draft.prefix} {_numbered(shown[:COMMON])}\n"
    return replace(draft, before=example + draft.before)


def _nth(words: Sequence[str], number: int) -> str:
    """Word `number` of a list without end: behind the last one come compounds."""
    turn, place = divmod(number, len(words))
    return words[place] if not turn else f"{words[place]}-{words[(place + turn) % len(words)]}"


def _repeated(words: Sequence[str], often: int, seldom: int, rng: np.random.Generator) -> list[str]:
    """The first words `often` and the others `seldom` times, in random order."""
    all_words = [*words[:COMMON]] * often + [*words[COMMON:]] * seldom
    return _shuffled(all_words, rng)


def _shuffled(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [words[int(number)] for number in rng.permutation(len(words))]


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _frequent_words(rng: np.random.Generator, length: int) -> Draft:
    size = max(length // 50, 4)
    coded: dict[str, None] = {"...": None}  # the most frequent one is noise
    while len(coded) < size:
        coded["".join(rng.choice(list(string.ascii_lowercase), 6))] = None
    shares = np.arange(1, size + 1) ** -ALPHA / (np.pi**2 / 6)  # zeta(2)
    seed = int(rng.integers(2**32))

    def make(size: int, depth: float) -> str:
        counts = (size * shares).astype(int)
        text = [word for word, count in zip(coded, counts, strict=True) for _ in range(count)]
        return " ".join(_shuffled(text, np.random.default_rng(seed)))

    return FWE.draft(Grown(make, 64), list(coded)[1:4])  # of 64 words the fourth comes twice


# Question answering: documents of a published data set, those that are needed among others.


@dataclass(frozen=True)
class Question:
    """A question of a data set, its answers, and the numbers of documents: those needed, and those much like them."""

    question: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    similar: tuple[int, ...] = ()


def read_squad(file: Path) -> tuple[list[Question], list[str]]:
    """Questions and paragraphs of SQuAD 2.0, as it is published in JSON; raises ValueError for another file."""
    try:
        articles = [article["paragraphs"] for article in json.loads(file.read_text(encoding="utf-8"))["data"]]
        documents = sorted({paragraph["context"] for article in articles for paragraph in article})
        number = {document: place for place, document in enumerate(documents)}
        questions = [
            Question(
                asked["question"],
                tuple(answer["text"] for answer in asked["answers"]),
                (number[paragraph["context"]],),
                tuple(number[o["context"]] for o in article if o["context"] != paragraph["context"]),
            )
            for article in articles
            for paragraph in article
            for asked in paragraph["qas"]
            if not asked.get("is_impossible") and asked["answers"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not the SQuAD data set in JSON ({type(error).__name__}: {error})") from error
    return _filled(file, questions, documents)


def read_hotpotqa(file: Path) -> tuple[list[Question], list[str]]:
    """Questions and paragraphs of HotpotQA, as it is published in JSON; raises ValueError for another file."""
    try:
        asked = json.loads(file.read_text(encoding="utf-8"))
        of_question = [[f"{title}\n{''.join(lines)}" for title, lines in one["context"]] for one in asked]
        documents = sorted({document for found in of_question for document in found})
        number = {document: place for place, document in enumerate(documents)}
        questions = [
            Question(one["question"], (one["answer"],), tuple(number[document] for document in found))
            for one, found in zip(asked, of_question, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not the HotpotQA data set in JSON ({type(error).__name__}: {error})") from error
    return _filled(file, questions, documents)


def _filled(file: Path, questions: list[Question], documents: list[str]) -> tuple[list[Question], list[str]]:
    if not questions:
        raise ValueError(f"{file} has no question with an answer: give a whole data set")
    texts = [*documents, *(text for one in questions for text in (one.question, *one.answers))]
    if not all(isinstance(text, str) and text.strip() for text in texts) or not all(one.needed for one in questions):
        raise ValueError(
            f"{file} has questions, answers or documents that are empty, or no text: give a whole data set"
        )
    return questions, documents


def _documents(data: tuple[list[Question], list[str]], rng: np.random.Generator, length: int) -> Draft:
    """Documents that are needed, spread evenly from the depth on, among others, of which the last is cut to fit."""
    questions, documents = data
    asked = questions[rng.integers(len(questions))]
    needed = [documents[number] for number in asked.needed]
    rest = set(range(len(documents))) - {*asked.needed, *asked.similar}
    order = [*asked.similar, *rng.permutation(sorted(rest)).tolist()]
    others = [documents[number] for number in order] or needed

    def make(size: int, depth: float) -> str:
        chosen, words = [], size
        for document in cycle(others):
            kept = document.split(" ")[:words]
            chosen.append(" ".join(kept))
            words -= len(kept)
            if not words:
                break
        places = [(depth + number / len(needed)) % 1.0 if number else depth for number in range(len(needed))]
        for place, document in zip(places, needed, strict=True):
            chosen.insert(round(place * len(chosen)), document)
        return "\n\n".join(f"Document {number}:\n{document}" for number, document in enumerate(chosen, 1))

    draft = QA.draft(Grown(make, 1), asked.answers, question=asked.question)
    return replace(draft, query=asked.question)


NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value_type="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key_type="uuids", value_type="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", queries=4),
}
DRAWN = {"vt": _variables, "fwe": _frequent_words}
DATA_SETS = {"qa_1": read_squad, "qa_2": read_hotpotqa}
NAMES = (*NEEDLES, "vt", "cwe", "fwe", *DATA_SETS)
ANSWER_TOKENS = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}  # 128 for needles


def groups(names: Sequence[str], haystack: str, files: Mapping[str, Path | None]) -> list[Group]:
    """The tasks of these names, each about texts of its own; `files` are those of the question-answering tasks.

    Names are of `NAMES`, words those of the haystack. Raises ValueError for a task without its file, and for a haystack
    of too few words.
    """
    words = sorted(set(WORD.findall(haystack)))
    if names and len(words) < FEWEST_WORDS:
        raise ValueError(
            f"the haystack has {len(words)} words of 3 to 10 small letters: give a text with {FEWEST_WORDS} or more"
        )
    return [_group(name, words, files) for name in dict.fromkeys(names)]


def _group(name: str, words: Sequence[str], files: Mapping[str, Path | None]) -> Group:
    score = match_part if name in DATA_SETS else match_all
    task, draw = Task(name, score, ANSWER_TOKENS.get(name, 128), one_line=False), _drawing(name, words, files)
    return Group((task,), lambda rng, chat, length: [draw(rng, length)])


def _drawing(
    name: str, words: Sequence[str], files: Mapping[str, Path | None]
) -> Callable[[np.random.Generator, int], Draft]:
    """What draws a question for prompts of a length."""
    if name in NEEDLES:
        return lambda rng, length: NEEDLES[name].draw(words, rng)
    if name in DRAWN:
        return DRAWN[name]
    if name == "cwe":
        return partial(_common_words, words)
    file = files.get(name)
    if file is None or not file.is_file():
        raise ValueError(f"the task {name} needs its data set: {'name it' if file is None else f'{file} is no file'}")
    return partial(_documents, DATA_SETS[name](file))
