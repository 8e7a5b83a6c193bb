"""`landmark retrieve`: passages, and errors on one line."""

import json

import pytest

import landmark
from landmark.cli import main as cli


@pytest.fixture
def heads(tmp_path) -> str:
    path = tmp_path / "heads.json"
    landmark.RetrievalHeads(((1, 0),)).save(path)
    return str(path)


def test_passages_are_listed(context, heads, files, model_folder, capsys):
    arguments = ["retrieve", str(context), "jim spoke of ships", "--heads", heads, "--top", "3"]
    assert cli.main([*arguments, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 1 <= len(rows) <= 3
    assert all(list(row) == ["document", "first", "last", "start", "stop", "score", "text"] for row in rows)
    with open(files[0], encoding="utf-8", newline="") as file:
        text = file.read()
    assert all(row["text"] == text[row["first"] : row["last"]] for row in rows)
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"1. {files[0]}, characters {rows[0]['first']}:{rows[0]['last']}, score ")
    assert cli.main([*arguments, "--json", "--without", files[0]]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CONTEXT", " ", "--heads", "HEADS"], "the query is empty"),
        (["/nonexistent", "jim", "--heads", "HEADS"], "is not a context"),
        (["CONTEXT", "jim", "--heads", "/nonexistent"], "heads is /nonexistent, which cannot be read (No such file"),
        (["CONTEXT", "jim", "--heads", "OTHER"], "is no file of heads"),
        (["CONTEXT", "jim"], "no heads are known"),
        (["CONTEXT", "jim", "--heads", "HEADS", "--top", "0"], "top is 0"),
        (["CONTEXT", "jim", "--heads", "HEADS", "--without", "x"], "no document is named 'x'"),
    ],
)
def test_mistakes(context, heads, arguments, said, capsys):
    places = {"CONTEXT": str(context), "HEADS": heads, "OTHER": str(context / "manifest.json")}
    given = [places.get(word, word) for word in arguments]
    assert cli.main(["retrieve", *given]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
