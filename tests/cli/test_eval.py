"""`landmark eval`: fields, files, and errors on one line."""

import json
import shutil

import pytest
import torch

import landmark
from landmark.cli import main as cli
from landmark.cli.options import whole_numbers


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("it was a calm sea and jim looked at the ships for a long while . " * 60, encoding="utf-8")
    return str(path)


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_passkey_prints_a_line_per_length(model_folder, book, capsys, tmp_path):
    log = tmp_path / "log.jsonl"
    arguments = [
        "eval",
        "passkey",
        "--model",
        str(model_folder),
        "--haystack",
        book,
        "--samples",
        "2",
        "--json",
    ]
    arguments += ["--out", str(log)]
    assert cli.main([*arguments, "--lengths", "150,200"]) == 0
    rows = lines(capsys)
    assert [row["length"] for row in rows] == [150, 200]
    fields = "length accuracy samples by_depth attention retrieve local_blocks chunk_size max_blocks"
    fields += " selection miss_threshold positions gap allow_nonfinite tokens_per_s seconds peak_rss_mb"
    assert all(list(row) == fields.split() for row in rows)
    assert (rows[0]["samples"], rows[0]["attention"], rows[0]["retrieve"]) == (2, "landmark", 2)
    # All answers are in the log: nothing is read again, the figures stay.
    before = log.read_text()
    assert cli.main([*arguments, "--lengths", "200,150"]) == 0
    assert lines(capsys) == rows[::-1]
    assert log.read_text() == before
    assert cli.main([*arguments, "--lengths", "150", "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err
    # At the same paths, another text or other weights.
    with open(book, "a", encoding="utf-8") as text:
        text.write("of it")
    assert cli.main([*arguments, "--lengths", "150"]) == 2
    assert "another haystack" in capsys.readouterr().err
    model = landmark.from_pretrained(model_folder)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1)
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    model.save_pretrained(other)
    arguments[arguments.index(str(model_folder))] = str(other)
    assert cli.main([*arguments, "--lengths", "150"]) == 2
    assert "another model" in capsys.readouterr().err


def test_passkey_table(model_folder, book, capsys):
    arguments = ["--model", str(model_folder), "--haystack", book, "--samples", "1", "--lengths", "150"]
    assert cli.main(["eval", "passkey", *arguments, "--attention", "local", "--window", "20"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "150 tokens by depth: 0.5-0.6: 0%" in printed


def test_perplexity_prints_settings_then_comparisons(model_folder, book, capsys):
    arguments = ["eval", "perplexity", "--model", str(model_folder), "--texts", book, "--lengths", "400,200"]
    arguments += [
        "--windows",
        "2",
        "--chunk-size",
        "30",
        "--json",
        "--against",
        "landmark@200,retrieve=0",
        "full@200",
    ]
    assert cli.main(arguments) == 0
    rows = lines(capsys)
    settings, comparisons = rows[:4], rows[4:]
    assert [(row["attention"], row["length"], row["retrieve"]) for row in settings] == [
        ("landmark", 400, 2),
        ("landmark", 200, 2),
        ("landmark", 200, 0),
        ("full", 200, 0),
    ]
    assert [row["tokens"] for row in settings] == [2 * 399, 4 * 199, 4 * 199, 4 * 199]
    assert all(row["windows"] == 2 and row["perplexity"] > 1 and row["nll_se"] >= 0 for row in settings)
    assert len(comparisons) == 4
    first = comparisons[0]
    assert first["setting"] == "landmark@400,retrieve=2,local_blocks=1,chunk_size=30"
    assert first["against"] == "landmark@200,retrieve=0,local_blocks=1,chunk_size=30"
    # Of 400 tokens the first is nobody's target; the 201st has no past in the windows of 200.
    assert first["tokens"] == 2 * 398
    assert cli.main(arguments[:10]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_perplexity_reads_as_the_options_say(model_folder, book, capsys):
    arguments = [
        "eval",
        "perplexity",
        "--model",
        str(model_folder),
        "--texts",
        book,
        "--lengths",
        "200",
        "--windows",
        "1",
    ]
    arguments += ["--chunk-size", "190", "--selection", "per_head", "--max-blocks", "20", "--miss-threshold", "0.5"]
    arguments += ["--against", "landmark@200,miss_threshold=0"]
    assert cli.main([*arguments, "--json"]) == 0
    one, other, difference = lines(capsys)
    assert (one["chunk_size"], one["selection"], one["max_blocks"], one["miss_threshold"]) == (190, "per_head", 20, 0.5)
    assert [row["looks_ahead"] for row in (one, other, difference)] == [True] * 3
    assert 0 <= one["retrievals_skipped"] <= 1
    assert (other["selection"], other["miss_threshold"], "retrievals_skipped" in other) == ("per_head", 0.0, False)
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "retrievals_skipped" in printed
    assert printed.count("looks_ahead") == 2, "in both tables"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--miss-threshold", "2"], "miss_threshold is 2"),
        (["--max-blocks", "0"], "max_blocks is 0"),
        (["--lengths", "12"], "length 12 is too short for a passkey"),
        (["--lengths", "4k"], "lengths is '4k'"),
        (["--lengths", "0"], "numbers of 1 or more"),
        (["--retrieve", "-1"], "retrieve is -1"),
        (["--samples", "0"], "samples is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--haystack", "/nonexistent.txt"], "does not exist"),
        (["--attention", "full", "--retrieve", "2"], "leave out retrieve"),
        (["--model", "/nonexistent"], "no model at"),
    ],
)
def test_mistakes_with_passkey(model_folder, book, arguments, said, capsys):
    given = ["--model", str(model_folder), "--haystack", book, "--lengths", "150", "--samples", "1"]
    assert cli.main(["eval", "passkey", *given, *arguments]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_a_passkey_that_has_no_room_is_known_before_weights_are_read(model_folder, book, capsys, monkeypatch):
    monkeypatch.setattr("landmark.hf.model_files.from_pretrained", lambda path: pytest.fail("weights are read"))
    assert cli.main(["eval", "passkey", "--model", str(model_folder), "--haystack", book, "--lengths", "12"]) == 2
    assert "too short for a passkey" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lengths", "300,400"], "choose lengths that divide the longest"),
        (["--lengths", "400000"], "no text fills a window"),
        (["--against", "full"], "no setting to compare with"),
        (["--chunk-size", "1000"], "does not fit the trained range"),
        (["--windows", "0"], "windows is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--texts", "/nonexistent.txt"], "does not exist"),
    ],
)
def test_mistakes_with_perplexity(model_folder, book, arguments, said, capsys):
    given = ["--model", str(model_folder), "--texts", book, "--lengths", "400"]
    assert cli.main(["eval", "perplexity", *given, *arguments]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_files_that_are_no_text(model_folder, tmp_path, capsys):
    path = tmp_path / "text.txt"
    for data, said in ((b"", "empty"), (b"\xff\xfe", "not UTF-8")):
        path.write_bytes(data)
        assert cli.main(["eval", "passkey", "--model", str(model_folder), "--haystack", str(path)]) == 2
        assert said in capsys.readouterr().err


def test_whole_numbers():
    assert whole_numbers("lengths", "4096,512,4096") == [4096, 512]
