"""Questions beyond literal recall: what is asked has one answer, by rules told again here."""

import re

import numpy as np
import pytest
from chat_tokenizer import chat_tokenizer

from landmark.evaluation.beyond import MOST, PAIRS, PEOPLE, ROOMS, TASKS, group, near, only_asked, only_named
from landmark.evaluation.tasks import Draft, Hidden, Prompt, Prompts

LENGTH = 8000
SENTENCES = " ".join(f"It was the {n}th day of the voyage and nothing was seen." for n in range(60))


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(chat_tokenizer(), SENTENCES, samples=4)


def made(prompts: Prompts, name: str) -> list[tuple[str, Prompt]]:
    """Contexts and prompts of a task."""
    prompts.check_length(group(name), LENGTH, True)
    found = [prompts.prompts(group(name), LENGTH, index, True)[0] for index in range(4)]
    return [(prompts.tokenizer.decode(p.text[p.context.start : p.context.stop]), p) for p in found]


@pytest.mark.parametrize("name", TASKS)
def test_length_and_determinism(prompts, name):
    first = made(prompts, name)
    assert [text for text, _ in first] == [text for text, _ in made(prompts, name)]
    for _, prompt in first:
        length = len(prompt.text) + len(prompt.question) + prompt.task.answer_tokens
        assert LENGTH * 0.99 <= length <= LENGTH
        assert prompt.task.score(prompt.draft.references[0], prompt.draft) == 1
        assert prompt.task.score("I do not know.", prompt.draft) == 0
    plain = prompts.prompts(group(name), LENGTH, 0, False)[0]
    assert prompts.tokenizer.decode(plain.question) == f"\n\n{plain.draft.query} Answer:"


def test_questions_share_no_word_with_what_they_ask_for(prompts):
    common = {"person", "which", "been", "with", "that"}
    for statement, question in PAIRS:
        told, asked = (set(re.findall(r"\w{4,}", text.lower())) - common for text in (statement, question))
        assert not told & asked
    for text, prompt in made(prompts, "other_words"):
        (statement,) = prompt.draft.text.asked
        assert prompt.draft.references[0] in statement
        assert statement in text
        assert sum(line in text for line in prompt.draft.text.others) == 3


def test_sides_of_rooms(prompts):
    opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}
    for text, prompt in made(prompts, "babi_4"):
        told = re.findall(r"The (\w+) is (north|south|east|west) of the (\w+)\.", text)
        assert len(told) == 2
        true = {*told, *((other, opposite[side], room) for room, side, other in told)}
        (answer,) = prompt.draft.references
        if asked := re.fullmatch(r"What is (\w+) of the (\w+)\?", prompt.draft.query):
            answers = {room for room, side, other in true if (side, other) == asked.groups()}
        else:
            asked = re.fullmatch(r"What is the (\w+) (\w+) of\?", prompt.draft.query)
            answers = {other for room, side, other in true if (room, side) == asked.groups()}
        assert answers == {answer}


def test_gifts_followed_line_by_line(prompts):
    for text, prompt in made(prompts, "babi_5"):
        names = "|".join(PEOPLE)
        room, held, gifts = {}, {}, []
        for person, what, thing, receiver in re.findall(
            rf"({names}) (went to|picked up|put down|gave) the (\w+)(?: to ({names}))?\.", text
        ):
            if what == "went to":
                room[person] = thing
            elif what == "picked up":
                held[thing] = person
            else:
                assert held.pop(thing) == person
            if what == "gave":
                assert room[receiver] == room[person]
                held[thing] = receiver
                gifts.append((person, thing, receiver))
        known = re.findall(rf"{names}|apple|football|milk", prompt.draft.query)
        (meant,) = {gift for gift in gifts if [part for part in gift if part in known] == known}
        assert {*meant} == {*known, *prompt.draft.references}


@pytest.mark.parametrize("name", ["babi_1", "babi_2", "babi_3"])
def test_stories_followed_line_by_line(prompts, name):
    for text, prompt in made(prompts, name):
        rooms: dict[str, list[str]] = {}
        held: dict[str, str] = {}
        steps = re.findall(rf"({'|'.join(PEOPLE)}) (went to|picked up|put down) the (\w+)\.", text)
        assert len(steps) == 16
        for person, what, thing in steps:
            if what == "went to":
                assert thing in ROOMS
                for mover in (person, *(one for one, by in held.items() if by == person)):
                    rooms.setdefault(mover, []).append(thing)
            elif what == "picked up":
                assert thing not in held
                assert rooms.get(thing, rooms[person])[-1] == rooms[person][-1], "where the person is"
                held[thing] = person
                rooms.setdefault(thing, [rooms[person][-1]])
            else:
                assert held.pop(thing) == person
        asked = re.findall(r"Mary|John|Sandra|Daniel|apple|football|milk", prompt.draft.query)[0]
        assert prompt.draft.references == (rooms[asked][-2 if name == "babi_3" else -1],)


def test_the_nth_note_is_the_nth_in_the_text(prompts):
    for text, prompt in made(prompts, "nth"):
        told = re.findall(r"Note about \w+: the number is (\d+)", text)
        nth = re.findall("first|second|third|fourth|fifth", prompt.draft.query)[0]
        place = ("first", "second", "third", "fourth", "fifth").index(nth)
        assert len(told) == 5
        assert prompt.draft.references == (told[place],)


def test_counts_are_those_of_the_text(prompts):
    for text, prompt in made(prompts, "count"):
        thing = re.search(r"was a (\w+) sold", prompt.draft.query)[1]
        sold = re.findall(r"sold the \w+ (\w+) to", text)
        assert 2 <= sold.count(thing) <= MOST
        assert prompt.draft.references == (str(sold.count(thing)),)
        places = [found.start() / len(text) for found in re.finditer(f" {thing} to", text)]
        assert np.ptp(places) >= 0.4, "all over the text"


def test_the_most_frequent_is_that_of_the_text(prompts):
    for text, prompt in made(prompts, "most"):
        sold = re.findall(r"sold the \w+ (\w+) to", text)
        counts = sorted(((sold.count(thing), thing) for thing in set(sold)), reverse=True)
        assert len(counts) == 4
        assert counts[0][0] > counts[1][0]
        assert prompt.draft.references == (counts[0][1],)
        assert all(thing in prompt.draft.query for _, thing in counts)


def draft(reference: str, question: str = "") -> Draft:
    return Draft(Hidden(()), question, (reference,))


def test_scores():
    assert near("There were 7, not 3.", draft("7")) == 1
    assert near("Five.", draft("7")) == 0.75**2
    assert near("None", draft("7")) == 0
    assert only_named("In the Kitchen.", draft("kitchen")) == 1
    assert only_named("In the kitchen or the garden.", draft("kitchen")) == 0
    assert only_named("Before the kitchen it was in the garden.", draft("garden", "before the kitchen?")) == 1
    assert only_named("Mary gave it to John.", draft("John", "what did mary give?")) == 1
    assert only_named("Mary, Sandra and John.", draft("John", "what did mary give?")) == 0
    assert only_named("The milk, in the garden.", draft("milk")) == 1
    assert only_asked("The lantern, more than the kettle.", draft("lantern")) == 1
    assert only_asked("kettle, lantern", draft("lantern")) == 0
