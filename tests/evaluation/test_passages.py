"""Tasks of retrieval: passages are the text, queries are about theirs, and nothing else decides."""

import pytest
from books import book

from landmark.evaluation.passages import PASSAGE_WORDS, TASKS, make_tasks, sentences


def test_sentences_are_the_text():
    text = 'He said: "Go!" She went.\n\nHEADING\n\nMr. Brown came. It was 3.14 o\'clock then.\nAnd so on'
    assert [one.strip() for one in sentences(text)] == [
        'He said: "Go!"',
        "She went.",
        "HEADING",
        "Mr. Brown came.",
        "It was 3.14 o'clock then.",
        "And so on",
    ]
    assert "".join(sentences(book())) == book()


def test_queries_are_about_their_passages():
    books = [book(), book(seed=1)]
    tasks = make_tasks(books, 20)
    texts = tasks.passage_texts()
    assert len(texts) == 20
    for document, text in enumerate(tasks.texts):
        own = [one for one in tasks.passages if one.document == document]
        assert len(own) == 10
        assert "".join(text[one.first : one.last] for one in own) == text
    assert all(PASSAGE_WORDS <= len(text.split()) < 2 * PASSAGE_WORDS for text in texts)
    assert [query.task for query in tasks.queries] == sorted((query.task for query in tasks.queries), key=TASKS.index)
    asked = {task: [query for query in tasks.queries if query.task == task] for task in TASKS}
    for query in asked["continuation"]:
        of_book = books[tasks.passages[query.passage].document]
        assert texts[query.passage] + query.text in of_book
        assert query.text not in " ".join(tasks.texts), "it is left out of what is read"
    for fact, question in zip(asked["fact"], asked["question"], strict=True):
        assert fact.passage == question.passage
        assert question.text.endswith(("?", "."))
        plain = texts[fact.passage]
        (stated,) = (one for one in sentences(plain) if plain.replace(one, "") in books[0] + books[1])
        value = fact.text.rstrip(".").split()[-1]
        assert value in stated or fact.text.split()[0] in stated
        assert "{" not in fact.text + stated


def test_they_depend_on_the_arguments_alone():
    assert make_tasks([book()], 8) == make_tasks([book()], 8)
    assert make_tasks([book()], 8) != make_tasks([book()], 8, seed=1)


def test_texts_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="9 passages of it take 1800: give longer texts or fewer passages"):
        make_tasks([book(1500)], 9)
    with pytest.raises(ValueError, match="a text ends in passage 2 of 2, for its sentences are long"):
        make_tasks([f"{'word ' * 400}. Then it was. "], 2)
    with pytest.raises(ValueError, match="1 passages of these texts give no query for fact: give more of them"):
        make_tasks([book(600)], 1)
