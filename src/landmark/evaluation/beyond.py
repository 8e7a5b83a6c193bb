"""Questions beyond recall of what is literally asked for: other words, states that change, order, and counts.

In the manner of NoLiMa (Modarressi et al. 2025), BABILong (Kuratov et al. 2024; tasks 1 to 5 of bAbI, Weston et al.
2015), MRCR (Vodrahalli et al. 2024) and Oolong (Bertsch et al. 2025); facts, wording and simulation are our own.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from landmark.data.chat import COLOURS, THINGS
from landmark.data.recall import random_key, random_name
from landmark.evaluation.recall import BEFORE, LEAD, words_found
from landmark.evaluation.ruler import CHARACTERS
from landmark.evaluation.tasks import Draft, Group, Grown, Hidden, Task

# A statement about <p>, and a question whose words it does not have: what links them is known, not stated.
PAIRS = (
    ("<p> sold roses for years below the Eiffel Tower.", "Which person has been to Paris?"),
    ("<p> rowed tourists under the Rialto Bridge every night.", "Which person has been to Venice?"),
    ("<p> oiled the wheels of Big Ben twice a week.", "Which person has been to London?"),
    ("<p> fed pigeons in front of the Colosseum.", "Which person has been to Rome?"),
    ("<p> was married within sight of the Acropolis.", "Which person has been to Athens?"),
    ("<p> sailed home past the Statue of Liberty.", "Which person has been to America?"),
    ("<p> slept in the shade of the Sphinx.", "Which person has been to Egypt?"),
    ("<p> took a photograph of the Kremlin at dawn.", "Which person has been to Moscow?"),
    ("<p> sets broken bones and writes prescriptions.", "Which person is a doctor?"),
    ("<p> takes four hundred loaves out of the oven before dawn.", "Which person is a baker?"),
    ("<p> nails iron shoes to hooves.", "Which person is a blacksmith?"),
    ("<p> pleads for the accused before judge and jury.", "Which person is a lawyer?"),
    ("<p> plays first violin at the opera.", "Which person is a musician?"),
    ("<p> pulls nets full of herring out of the sea.", "Which person is a fisherman?"),
    ("<p> drills and fills teeth.", "Which person is a dentist?"),
    ("<p> planted a flag in the dust of the Moon.", "Which person is an astronaut?"),
)
STRANGERS = 3  # other pairs in the text

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
PEOPLE = ("Mary", "John", "Sandra", "Daniel")
OBJECTS = ("apple", "football", "milk")
STEPS = 16
SIDES = {"north": "south", "south": "north", "east": "west", "west": "east"}  # and their opposites
NOTES = 5
ORDINALS = ("first", "second", "third", "fourth", "fifth")
MOST = 12  # lines of what is counted
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SHARES = (0.4, 0.25, 0.2, 0.15)
FEWEST = 20  # lines, with which the shares are whole numbers


def _asked(hidden: Hidden | Grown, question: str, answer: str) -> Draft:
    return Draft(hidden, f"{LEAD}{question}", (answer,), before=BEFORE, query=question)


# NoLiMa.


def _other_words(rng: np.random.Generator) -> Draft:
    names: dict[str, None] = {}
    while len(names) <= STRANGERS:
        names[random_name(rng)] = None
    pairs = [PAIRS[int(number)] for number in rng.permutation(len(PAIRS))]
    stated = [f" {pair[0].replace('<p>', name)}" for pair, name in zip(pairs, names, strict=False)]
    return _asked(Hidden((stated[0],), tuple(stated[1:])), pairs[0][1], next(iter(names)))


# BABILong: people go from room to room, take things along, leave and give them; and where rooms lie.


class _World:
    """Simulates steps: `lines` say what happens, `where` and `before` are rooms of people and things.

    With `giving`, people also hand things to others in their room; `gifts` are (giver, thing, receiver).
    """

    def __init__(self, rng: np.random.Generator, giving: bool) -> None:
        self.rng, self.giving = rng, giving
        self.lines: list[str] = []
        self.gifts: list[tuple[str, str, str]] = []
        self.where: dict[str, str] = {}
        self.before: dict[str, str] = {}  # the room where a thing was before the one where it is
        self.held: dict[str, str] = {}  # thing: person

    def step(self) -> None:
        """A person moves, or takes, leaves or gives a thing."""
        person = self._pick(PEOPLE)
        room, held = self.where.get(person), [thing for thing, by in self.held.items() if by == person]
        free = [o for o in OBJECTS if o not in self.held and self.where.get(o) in (None, room)]
        others = [one for one in PEOPLE if one != person and self.where.get(one) == room] if self.giving else []
        if held and others:
            self._give(person, held[0], self._pick(others))
        elif room is None or self.rng.random() < 0.5 or not (held or free):
            self._move(person)
        elif held and (not free or self.rng.random() < 0.5):
            del self.held[held[0]]
            self.lines.append(f" {person} put down the {held[0]}.")
        else:
            thing = self._pick(free)
            self.held[thing] = person
            self.where[thing] = room
            self.lines.append(f" {person} picked up the {thing}.")

    def _move(self, person: str) -> None:
        room = self._pick([room for room in ROOMS if room != self.where.get(person)])
        for thing in (thing for thing, by in self.held.items() if by == person):
            self.before[thing] = self.where[thing]
            self.where[thing] = room
        self.where[person] = room
        self.lines.append(f" {person} went to the {room}.")

    def _give(self, person: str, thing: str, receiver: str) -> None:
        self.held[thing] = receiver
        self.gifts.append((person, thing, receiver))
        self.lines.append(f" {person} gave the {thing} to {receiver}.")

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]


def _world(asked: Callable[[_World], tuple[str, str] | None], rng: np.random.Generator, giving: bool = False) -> Draft:
    """A story that the question `asked` has an answer to."""
    while True:
        world = _World(rng, giving)
        for _ in range(STEPS):
            world.step()
        if found := asked(world):
            return _asked(Hidden(tuple(world.lines)), *found)


def _person(world: _World) -> tuple[str, str] | None:
    person = world._pick(PEOPLE)
    return (f"Where is {person}?", world.where[person]) if person in world.where else None


def _thing(world: _World) -> tuple[str, str] | None:
    thing = world._pick(OBJECTS)
    return (f"Where is the {thing}?", world.where[thing]) if thing in world.where else None


def _earlier(world: _World) -> tuple[str, str] | None:
    thing = world._pick(OBJECTS)
    if thing not in world.before:
        return None
    return f"Where was the {thing} before the {world.where[thing]}?", world.before[thing]


def _gift(world: _World) -> tuple[str, str] | None:
    """Asks for the giver, the thing or the receiver of a gift, where the other two say which gift is meant."""
    if not world.gifts:
        return None
    gift = world.gifts[int(world.rng.integers(len(world.gifts)))]
    giver, thing, receiver = gift
    left_out = int(world.rng.integers(3))
    if len({one for one in world.gifts if all(one[i] == gift[i] for i in range(3) if i != left_out)}) > 1:
        return None
    questions = (
        f"Who gave the {thing} to {receiver}?",
        f"What did {giver} give to {receiver}?",
        f"Who did {giver} give the {thing} to?",
    )
    return questions[left_out], gift[left_out]


def _beside(rng: np.random.Generator, room: str, side: str, other: str) -> str:
    """That a room is on a side of another one, told from either of them."""
    if rng.random() < 0.5:
        room, side, other = other, SIDES[side], room
    return f" The {room} is {side} of the {other}."


def _sides(rng: np.random.Generator) -> Draft:
    """Three rooms in a row: two lines say on which side of the middle one the others lie."""
    first, middle, last = (ROOMS[int(number)] for number in rng.permutation(len(ROOMS))[:3])
    side = list(SIDES)[int(rng.integers(len(SIDES)))]
    lines = (_beside(rng, first, side, middle), _beside(rng, middle, side, last))
    question, answer = (
        (f"What is {side} of the {middle}?", first),
        (f"What is the {middle} {side} of?", last),
        (f"What is {SIDES[side]} of the {middle}?", last),
        (f"What is the {middle} {SIDES[side]} of?", first),
    )[int(rng.integers(4))]
    return _asked(Hidden(lines), question, answer)


def only_named(answer: str, draft: Draft) -> float:
    """1 if an answer names the right room, person or thing and no other one of its kind, but those of the question."""
    right = set(draft.references)
    kind = next({*map(str.lower, names)} for names in (ROOMS, PEOPLE, OBJECTS) if right <= {*names})
    named, asked = (kind & set(re.findall(r"\w+", text.lower())) for text in (answer, draft.question))
    return float(named - asked == {*map(str.lower, right)})


# MRCR.


def _nth(rng: np.random.Generator) -> Draft:
    name, nth = random_name(rng), int(rng.integers(NOTES))
    values = [random_key(rng) for _ in range(NOTES)]
    stated = tuple(f"\n\nNote about {name}: the number is {value}.\n\n" for value in values)
    question = f"The text has {NOTES} notes about {name}. What is the number of the {ORDINALS[nth]} one?"
    return _asked(Hidden(stated), question, values[nth])


# Oolong: counts and comparisons over all lines, for which no choice of a few blocks suffices.


def _sale(rng: np.random.Generator, thing: str) -> str:
    return f"{random_name(rng)} sold the {COLOURS[int(rng.integers(len(COLOURS)))]} {thing} to {random_name(rng)}.\n"


def _count(rng: np.random.Generator) -> Draft:
    """So many sales of one thing, evenly spread among those of others."""
    counted, *others = (THINGS[int(number)] for number in rng.permutation(len(THINGS)))
    number = int(rng.integers(2, MOST + 1))

    def more(tokens: int) -> str:
        made, characters = [], 0
        while characters < CHARACTERS * tokens:
            made.append(_sale(rng, others[int(rng.integers(len(others)))]))
            characters += len(made[-1])
        return "".join(made)

    hidden = Hidden(tuple(_sale(rng, counted) for _ in range(number)), filler=more)
    return _asked(hidden, f"How many times was a {counted} sold? Answer with a number.", str(number))


def _most(rng: np.random.Generator) -> Draft:
    """Sales of four things in fixed shares, whatever their number."""
    things = [THINGS[int(number)] for number in rng.permutation(len(THINGS))[: len(SHARES)]]
    seed = int(rng.integers(2**32))

    def make(size: int, depth: float) -> str:
        drawn = np.random.default_rng(seed)
        sold = np.repeat(np.arange(len(SHARES)), np.round(np.array(SHARES) * size).astype(int))
        return "".join(_sale(drawn, things[int(number)]) for number in drawn.permutation(sold))

    listed = [things[int(number)] for number in rng.permutation(len(things))]
    question = f"Which of these was sold most often: {', '.join(listed[:-1])} or {listed[-1]}? Answer with one word."
    return _asked(Grown(make, FEWEST), question, things[0])


def near(answer: str, draft: Draft) -> float:
    """1 if the first number of an answer is right, 0.75 to the power of its distance otherwise, 0 without one."""
    for word in re.findall(r"\w+", answer.lower()):
        if word.isdecimal() or word in NUMBERS:
            number = int(word) if word.isdecimal() else NUMBERS.index(word)
            return 0.75 ** min(abs(number - int(draft.references[0])), 1000)
    return 0.0


def only_asked(answer: str, draft: Draft) -> float:
    """1 if the first thing that an answer names is the right one."""
    named = [word for word in re.findall(r"\w+", answer.lower()) if word in THINGS]
    return float(named[:1] == list(draft.references))


TASKS = {
    "other_words": (_other_words, words_found, 32),
    "babi_1": (partial(_world, _person), only_named, 16),
    "babi_2": (partial(_world, _thing), only_named, 16),
    "babi_3": (partial(_world, _earlier), only_named, 16),
    "babi_4": (_sides, only_named, 16),
    "babi_5": (partial(_world, _gift, giving=True), only_named, 16),
    "nth": (_nth, words_found, 32),
    "count": (_count, near, 16),
    "most": (_most, only_asked, 16),
}


def group(name: str) -> Group:
    """The task of this name, one of `TASKS`. In the plain form the answer begins with "Answer:"."""
    draw, score, answer_tokens = TASKS[name]

    def drafts(rng: np.random.Generator, chat: bool, length: int) -> list[Draft]:
        draft = draw(rng)
        return [draft if chat else replace(draft, before="", question=f"\n\n{draft.query}", prefix=" Answer:")]

    return Group((Task(name, score, answer_tokens),), drafts)
