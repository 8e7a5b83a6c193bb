"""`landmark eval retrieval`: rows, heads that are chosen and saved, and errors on one line."""

import json
import sys

import pytest
from books import book

import landmark
from landmark.cli import main as cli


@pytest.fixture
def books(tmp_path) -> tuple[str, str]:
    paths = tmp_path / "test.txt", tmp_path / "validation.txt"
    for seed, path in enumerate(paths):
        path.write_text(book(seed=seed), encoding="utf-8")
    return str(paths[0]), str(paths[1])


def test_heads_are_chosen_on_other_books_and_saved(model_folder, books, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.setattr("landmark.evaluation.bm25.find_spec", lambda name: None)
    monkeypatch.setattr("landmark.hf.sentence_encoder.find_spec", lambda name: None)
    heads = tmp_path / "heads.json"
    given = ["eval", "retrieval", "--model", str(model_folder), "--texts", books[0], "--passages", "6"]
    assert cli.main([*given, "--choose-on", books[1], "--save-heads", str(heads), "--json"]) == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["method"] for row in rows] == ["mean-keys"] * 3 + ["landmarks"] * 3
    assert [row["task"] for row in rows[:3]] == ["continuation", "fact", "question"]
    fields = "task method queries passages recall@1 recall@1_interval recall@5 recall@5_interval"
    fields += " recall@10 recall@10_interval mrr mrr_interval ms_per_query"
    assert all(list(row) == fields.split() for row in rows)
    assert "bm25 is left out: BM25 needs the package bm25s" in output.err
    assert "dense is left out: the dense encoder needs the package" in output.err
    landmark.RetrievalHeads.load(heads)
    # The same heads give the same figures.
    assert cli.main([*given, "--heads", str(heads), "--methods", "landmarks", "mean-keys", "--json"]) == 0
    output = capsys.readouterr()
    again = [json.loads(line) for line in output.out.splitlines()]
    untimed = [{**row, "ms_per_query": 0} for row in (*rows[3:], *again)]
    assert untimed[:3] == untimed[3:]
    assert "mean-keys are left out" in output.err
    assert cli.main([*given, "--heads", str(heads), "--methods", "landmarks"]) == 0
    assert "recall@10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no heads are known"),
        (["--passages", "5"], "passages is 5"),
        (["--passages", "100"], "give longer texts or fewer passages"),
        (["--save-heads", "heads.json"], "give choose_on"),
        (["--choose-on", "BOOK", "--heads", "x.json"], "give one of them"),
        (["--choose-on", "BOOK", "TEXT"], "heads are chosen on other books"),
        (["--heads", "/nonexistent"], "/nonexistent, which cannot be read"),
        (["--texts", "/nonexistent"], "does not exist"),
        (["--methods", "tfidf"], "tfidf"),
        (["--methods", "bm25", "--heads", "x.json"], "heads is for the method landmarks"),
        (["--methods", "bm25", "dense", "--choose-on", "BOOK"], "choose_on is for the method mean-keys or landmarks"),
        (["--methods", "mean-keys", "--choose-on", "BOOK", "--save-heads", "x.json"], "save_heads is for the method"),
        (["--methods", "bm25", "dense"], "model is for the method mean-keys or landmarks"),
        (["--methods", "mean-keys"], "no heads are known for mean-keys: give choose_on"),
        (["--methods"], "methods are none"),
        (["--methods", "bm25", "landmarks", "--heads", "/nonexistent"], "/nonexistent, which cannot be read"),
    ],
)
def test_mistakes(model_folder, books, arguments, said, capsys):
    given = ["--model", str(model_folder), "--texts", books[0], "--passages", "6", "--methods", "landmarks"]
    arguments = [{"BOOK": books[1], "TEXT": books[0]}.get(word, word) for word in arguments]
    try:
        code = cli.main(["eval", "retrieval", *given, *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
