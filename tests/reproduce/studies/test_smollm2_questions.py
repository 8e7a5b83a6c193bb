import json

import pytest

from landmark.assets import book_path
from reproduce.studies import smollm2_questions
from reproduce.studies.lord_jim import Question
from reproduce.studies.options import QuestionsOptions
from reproduce.studies.smollm2_models import Pair

pytest.importorskip("bm25s")
QUOTE = "One sunny morning"  # of the preface


def question() -> Question:
    offset = book_path().read_text(encoding="utf-8").index(QUOTE)
    return Question("named", "When did the sunny roadstead come?", ("morning",), (), (QUOTE,), (offset,))


def test_the_book_is_read_once_and_asked_in_every_way(pair, tmp_path, monkeypatch, capsys, known_heads):
    monkeypatch.setattr(Pair, "load", lambda options: pair)
    monkeypatch.setattr(smollm2_questions, "questions", lambda: [question()])
    options = QuestionsOptions(original="tiny", work=tmp_path / "work", tokens=4500, json=True)
    assert smollm2_questions.run(options) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["of"] for row in rows] == [1] * 7
    assert {row["answered_by"] for row in rows if "found" in row} == {
        "landmark",
        "landmark, 5 blocks again",
        "landmark, nothing opened",
        "original, bm25",
    }
    opened = {row["answered_by"]: row["found"] for row in rows if "found" in row}
    assert opened["landmark, nothing opened"] == "0/1"
    assert opened["original, bm25"] == "1/1"

    def again(*_: object) -> None:
        raise AssertionError("answers are kept")

    monkeypatch.setattr(smollm2_questions.Answering, "_from_nothing", again)
    assert smollm2_questions.run(options) == 0


def test_a_beginning_without_an_answer_is_refused(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(Pair, "load", lambda options: pair)
    with pytest.raises(ValueError, match="answer none of the questions"):
        smollm2_questions.run(QuestionsOptions(original="tiny", work=tmp_path / "work", tokens=100))
    assert not (tmp_path / "work").exists()
