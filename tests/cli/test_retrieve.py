"""`landmark retrieve`: passages, and errors on one line."""

import json
import re
from pathlib import Path

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
    output = capsys.readouterr()
    printed = output.out
    assert "SmolLM2" not in output.err
    assert printed.startswith(f"1. {files[0]}, characters {rows[0]['first']}:{rows[0]['last']}, score ")
    assert cli.main([*arguments, "--json", "--without", files[0]]) == 0
    assert capsys.readouterr().out == ""


def test_help_and_a_hint_say_what_to_expect(tmp_path, capsys):
    """The shares in the help are those that were measured, for questions, in docs/retrieval.md."""
    table = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text(encoding="utf-8")
    row = r"question, 42 queries \| {} \| [^|]* \| 0\.(\d\d) "
    with pytest.raises(SystemExit):
        cli.main(["retrieve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for method, wanted in (
        ("landmarks, the package's model", "{} % with the model in the package"),
        ("landmarks, SmolLM2-135M-Instruct", "{} % with SmolLM2-135M-Instruct"),
        ("bm25", "BM25 had {} %"),
    ):
        (share,) = re.findall(row.format(method), table)
        assert wanted.format(int(share)) in said

    (tmp_path / "text.txt").write_text("The pass key is 48213. Remember it. " * 9, encoding="utf-8")
    assert cli.main(["read", str(tmp_path / "text.txt"), "--out", str(tmp_path / "library")]) == 0
    capsys.readouterr()
    arguments = ["retrieve", str(tmp_path / "library"), "What is the pass key?"]
    assert cli.main(arguments) == 0
    assert "SmolLM2-135M-Instruct finds more" in capsys.readouterr().err
    assert cli.main([*arguments, "--json"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CONTEXT", " ", "--heads", "HEADS"], "the query is empty"),
        (["/nonexistent", "jim", "--heads", "HEADS"], "/nonexistent does not exist: `landmark read FILE ... --out"),
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
