from collections import Counter

import pytest

from landmark.assets import book_path
from reproduce.studies.lord_jim import Question, questions


@pytest.fixture(scope="module")
def book() -> str:
    return book_path().read_text(encoding="utf-8")


def test_there_are_twenty_of_four_kinds():
    assert Counter(q.kind for q in questions()) == {"named": 10, "plain": 6, "two": 2, "none": 2}
    assert len({q.question for q in questions()}) == 20


@pytest.mark.parametrize("question", questions(), ids=lambda q: q.question)
def test_quotes_stand_in_the_book_and_hold_the_answer(question, book):
    for quote, offset in zip(question.quotes, question.offsets, strict=True):
        assert book[offset : offset + len(quote)] == quote
        assert quote in question.passage(book)
    # The quotes are a right answer, and the question gives nothing away.
    assert question.right(" ".join(question.quotes)) == (question.kind != "none")
    assert not question.right(question.question)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It was the Avondale.", True),
        ("the AVONDALE", True),
        ("The\nTamb\u2019 Itam", True),
        ("Avondales", False),
        ("The Avondale, or the gunboat.", False),
        ("", False),
    ],
)
def test_answers_are_judged_by_whole_words(answer, right):
    question = Question("named", "Which?", ("Avondale", "Tamb' Itam"), ("gunboat",), (), ())
    assert question.right(answer) == right
