"""`landmark eval recall` and `landmark eval ruler`: rows, the log, and errors on one line."""

import itertools
import json
from types import SimpleNamespace

import pytest

from landmark.cli import main as cli
from landmark.cli import recall as command

FIELDS = "task form length right low high score samples by_depth attention window"
READING = "block_size retrieve local_blocks chunk_size max_blocks selection miss_threshold positions gap"


@pytest.fixture
def haystack(tmp_path) -> str:
    path = tmp_path / "haystack.txt"
    path.write_text("It was a calm sea. Jim looked at the ships for a long while. " * 60, encoding="utf-8")
    return str(path)


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def recall(*arguments: str) -> int:
    return cli.main(["eval", "recall", *arguments])


def test_a_dtype_is_that_of_the_answers(model_folder, haystack, capsys, tmp_path):
    given = ["--model", str(model_folder), "--haystack", haystack, "--samples", "1", "--json", "--tasks", "absent"]
    given += ["--lengths", "500", "--out", str(tmp_path / "log.jsonl")]
    assert recall(*given) == 0
    assert recall(*given, "--dtype", "bfloat16") == 2
    assert "was made with another model" in capsys.readouterr().err
    assert recall(*given[:-2], "--dtype", "bfloat16") == 0
    assert [row["dtype"] for row in lines(capsys)] == ["bfloat16"]


def test_a_row_for_each_task_and_length_and_a_log_to_go_on_from(model_folder, haystack, capsys, tmp_path):
    log = tmp_path / "log.jsonl"
    given = ["--model", str(model_folder), "--haystack", haystack, "--samples", "2", "--json", "--out", str(log)]
    given += ["--tasks", "passkey,absent"]
    assert recall(*given, "--lengths", "500,600") == 0
    rows = lines(capsys)
    assert [(row["task"], row["length"]) for row in rows] == [
        ("passkey", 500),
        ("absent", 500),
        ("passkey", 600),
        ("absent", 600),
    ]
    expected = f"{FIELDS} {READING} dtype rag tokens_per_s seconds peak_rss_mb".split()
    assert all(list(row) == expected for row in rows)
    assert all((row["form"], row["attention"], row["samples"]) == ("plain", "landmark", 2) for row in rows)
    before = log.read_text()
    assert recall(*given, "--lengths", "600,500") == 0
    assert {str(row) for row in lines(capsys)} == {str(row) for row in rows}
    assert log.read_text() == before, "nothing is read again"
    assert recall(*given, "--lengths", "500", "--attention", "none") == 2
    assert "another attention" in capsys.readouterr().err
    assert recall(*given, "--lengths", "500", "--tasks", "passkey") == 2
    assert "another together" in capsys.readouterr().err


def test_time_ends_and_the_same_command_goes_on(plain_folder, haystack, capsys, tmp_path, monkeypatch):
    given = ["--model", plain_folder, "--haystack", haystack, "--samples", "4", "--tasks", "passkey,named"]
    given += ["--lengths", "900", "--out", str(tmp_path / "log.jsonl"), "--json"]
    clock = itertools.count(0, 60)  # a minute each time
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert recall(*given[:-3], "--json", "--minutes", "1") == 0
    assert "0 of 8 questions: only with --out" in capsys.readouterr().err
    assert recall(*given, "--minutes", "3") == 0
    output = capsys.readouterr()
    assert [json.loads(line)["samples"] for line in output.out.splitlines()] == [2, 2]
    assert "4 of 8 questions: the same command goes on" in output.err
    assert recall(*given) == 0
    assert [row["samples"] for row in lines(capsys)] == [4, 4]


@pytest.mark.parametrize("more", [["--attention", "sinks"], ["--attention", "yarn"], ["--rag", "bm25"]])
def test_baselines_are_of_the_ordinary_model(plain_folder, haystack, more, capsys):
    given = ["--model", plain_folder, "--haystack", haystack, "--samples", "1", "--tasks", "facts,chains"]
    assert recall(*given, "--lengths", "1500", "--json", *more) == 0
    rows = lines(capsys)
    assert [row["task"] for row in rows] == ["facts", "chains"]
    assert {row["attention"] for row in rows} == {more[1].replace("bm25", "full")}
    assert {row.get("rag_tokens") for row in rows} == {2048 if "--rag" in more else None}
    assert recall(*given, "--lengths", "1500", *more) == 0
    assert "1,500 tokens by depth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "passkeys"], "no task 'passkeys': choose of passkey, named"),
        (["--lengths", "60"], "length 60 is too short for passkey"),
        (["--form", "chat"], "no chat template"),
        (["--attention", "yarn"], "before conversion"),
        (["--attention", "full", "--retrieve", "2"], "leave out retrieve"),
        (["--rag-tokens", "100"], "nothing is searched"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--model", "nowhere.gguf"], "does not exist"),
        (["--model", "/nowhere"], "no model at /nowhere"),
        (["--haystack", "/nowhere.txt"], "does not exist"),
        (["--minutes", "0"], "minutes is 0"),
        (["--plot", "map.xyz"], "plot is map.xyz: end its name in one of"),
        (["--plot", "map"], "plot is map: end its name in one of"),
    ],
)
def test_mistakes(model_folder, haystack, arguments, said, capsys):
    given = ["--model", str(model_folder), "--haystack", haystack, "--lengths", "500", "--tasks", "passkey"]
    assert recall(*given, "--samples", "1", *arguments) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_what_a_tokenizer_decides_is_known_before_weights_are_read(plain_folder, haystack, capsys, monkeypatch):
    monkeypatch.setattr("landmark.hf.plain.load_plain", lambda path: pytest.fail("weights are read"))
    given = ["--model", plain_folder, "--haystack", haystack, "--tasks", "passkey", "--samples", "1"]
    assert recall(*given, "--lengths", "60") == recall(*given, "--lengths", "500", "--form", "chat") == 2
    said = capsys.readouterr().err
    assert "length 60 is too short" in said
    assert "no chat template" in said
    with monkeypatch.context() as patch:
        patch.setattr("landmark.hf.loading.read_tokenizer", lambda path: SimpleNamespace(is_fast=False))
        assert recall(*given, "--lengths", "500") == 2
        assert "has no character offsets" in capsys.readouterr().err
    monkeypatch.setattr("landmark.evaluation.bm25.find_spec", lambda name: None)
    assert recall(*given, "--lengths", "500", "--rag", "bm25") == 2
    assert "BM25 needs the package bm25s" in capsys.readouterr().err


def test_passages_that_cannot_fit_are_known_before_weights_are_read(plain_folder, haystack, capsys, monkeypatch):
    pytest.importorskip("bm25s")
    monkeypatch.setattr("landmark.hf.plain.load_plain", lambda path: pytest.fail("weights are read"))
    given = ["--model", plain_folder, "--haystack", haystack, "--tasks", "facts", "--lengths", "1500"]
    assert recall(*given, "--rag", "bm25", "--rag-tokens", "60") == 2
    assert "rag_tokens is 60, less than a passage of three blocks" in capsys.readouterr().err


def test_choosing_together_is_marked(model_folder, haystack, capsys):
    given = ["--model", str(model_folder), "--haystack", haystack, "--tasks", "passkey", "--lengths", "500", "--json"]
    assert recall(*given, "--samples", "1", "--selection", "per_head") == 0
    assert recall(*given, "--samples", "1", "--selection", "per_token") == 0
    assert [row.get("looks_ahead") for row in lines(capsys)] == [True, None]


def test_an_ordinary_model_has_no_landmarks(plain_folder, haystack, capsys):
    given = ["--model", plain_folder, "--haystack", haystack, "--tasks", "passkey", "--lengths", "500"]
    for attention in ("landmark", "none", "local"):
        assert recall(*given, "--attention", attention) == 2
        assert "has none: give the adapter" in capsys.readouterr().err


# RULER.


@pytest.fixture
def essay(tmp_path) -> str:
    path = tmp_path / "essay.txt"
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("ala", "eme", "ini") for c in "lmnrst"]
    path.write_text(" ".join(f"The {word} was seen\nby nobody." for word in words), encoding="utf-8")
    return str(path)


def test_all_tasks_without_files_and_a_plot(plain_folder, essay, capsys, tmp_path):
    given = ["eval", "ruler", "--model", plain_folder, "--haystack", essay, "--samples", "1", "--lengths", "3500"]
    given += ["--json", "--out", str(tmp_path / "log.jsonl")]
    assert cli.main([*given, "--tasks", "ruler,beyond", "--plot", str(tmp_path / "map.png")]) == 0
    rows = lines(capsys)
    assert len(rows) == 11 + 9
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert all(0 <= row["low"] <= row["high"] <= 1 and row["attention"] == "full" for row in rows)
    assert cli.main([*given, "--tasks", "vt,cwe"]) == 0
    assert [row["task"] for row in lines(capsys)] == ["vt", "cwe"]


def test_an_answer_counts_once(plain_folder, essay, capsys):
    given = ["eval", "ruler", "--model", plain_folder, "--haystack", essay, "--samples", "1", "--lengths", "900"]
    assert cli.main([*given, "--tasks", "count,most,count", "--json"]) == 0
    assert [(row["task"], row["samples"]) for row in lines(capsys)] == [("count", 1), ("most", 1)]


def test_a_log_is_of_one_data_set(plain_folder, essay, capsys, tmp_path):
    def squad(colour: str) -> str:
        asked = {"question": "What colour is the sea?", "answers": [{"text": colour}]}
        paragraphs = [{"context": f"The sea is {colour}.", "qas": [asked]}]
        path = tmp_path / f"{colour}.json"
        path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
        return str(path)

    given = ["eval", "ruler", "--model", plain_folder, "--haystack", essay, "--samples", "1", "--lengths", "900"]
    given += ["--tasks", "qa_1", "--json", "--out", str(tmp_path / "log.jsonl"), "--squad"]
    assert cli.main([*given, squad("green")]) == 0
    assert cli.main([*given, squad("blue")]) == 2
    assert "made with another qa_1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "niah"], "no task 'niah': choose of niah_single_1"),
        (["--tasks", "qa_1"], "the task qa_1 needs its data set"),
        (["--squad", "/nowhere.json"], "/nowhere.json is no file"),
        (["--tasks", "vt", "--squad", "file.json"], "file.json is the data set of the task qa_1"),
        (["--tasks", "cwe", "--lengths", "900"], "length 900 is too short for cwe"),
    ],
)
def test_mistakes_with_ruler(plain_folder, essay, arguments, said, capsys):
    given = ["--model", plain_folder, "--haystack", essay, "--lengths", "3000", "--samples", "1"]
    assert cli.main(["eval", "ruler", *given, *arguments]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
