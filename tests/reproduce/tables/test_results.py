"""The file of measurements: what it keeps, what it refuses, what a kill leaves."""

import json
from pathlib import Path

import pytest
from measurements import add_perplexities, full, landmark

from reproduce.tables.results import Results

LINE = {
    "table": "language_modeling",
    "method": "landmark",
    "read_length": 512,
    "seed": 0,
    "steps": 10,
    "perplexity": 20.0,
    "se": None,
    "samples": 5,
}


def test_lines_come_back_as_given(results: Results):
    line = LINE | {"corpus": "books", "nll": [3.0, 2.9], "machine": "here", "quick": True}
    results.add(line)
    results.add(LINE)
    again = Results(results.path)
    assert again.lines == results.lines == [line, LINE]
    assert again.find(corpus="books", seed=0) == [line]
    assert again.find(corpus=None) == [LINE]  # without a corpus
    assert again.has(quick=True)
    assert not again.has(quick=True, seed=1)


def test_a_line_cut_short_is_left_out_and_replaced(results: Results):
    results.add(LINE)
    whole = results.path.read_bytes()
    results.path.write_bytes(whole + whole[:-20])
    again = Results(results.path)
    assert again.lines == [LINE]
    assert results.path.read_bytes() == whole + whole[:-20]  # reading changes nothing
    again.add(LINE | {"seed": 1})
    assert [json.loads(line)["seed"] for line in results.path.read_bytes().splitlines()] == [0, 1]


def test_the_same_measurement_is_written_once(results: Results):
    results.add(LINE)
    size = results.path.stat().st_size
    results.add(LINE | {"date": "later"})
    assert results.path.stat().st_size == size
    assert Results(results.path).lines == [LINE]


def test_two_values_for_one_key_are_refused(results: Results):
    results.add(LINE)
    with pytest.raises(ValueError, match=r"perplexity is 21.0, but was 20.0 before.*'method': 'landmark'"):
        results.add(LINE | {"perplexity": 21.0})
    assert len(results.path.read_bytes().splitlines()) == 1
    with results.path.open("a") as file:
        file.write(json.dumps(LINE | {"samples": 6}) + "\n")
    with pytest.raises(ValueError, match=r"results.jsonl, line 2: samples is 6, but was 5 before"):
        Results(results.path)


def test_settings_and_kinds_tell_lines_apart(results: Results):
    accuracy = {name: value for name, value in LINE.items() if name not in ("perplexity", "se")} | {"accuracy": 1.0}
    for line in (LINE, LINE | {"retrieve": 2}, LINE | {"seed": 1}, accuracy):
        results.add(line)
    against = {"against": "landmark", "difference": 0.1, "difference_se": None}
    results.add(LINE | against | {"against_retrieve": 2})
    results.add(LINE | against | {"against_retrieve": 4, "difference": 0.2})
    assert len(Results(results.path).lines) == 6


def test_two_runs_at_once_are_noticed(results: Results):
    other = Results(results.path)
    results.add(LINE)
    with pytest.raises(ValueError, match="has grown meanwhile"):
        other.add(LINE | {"seed": 1})
    assert Results(results.path).lines == [LINE]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": "perplexities"}, "table is 'perplexities': give one of language_modeling"),
        ({"corpus": "law"}, "corpus is 'law': give one of books, math"),
        ({"seed": "0"}, "seed is '0': give int"),
        ({"seed": True}, "seed is True: give int"),
        ({"perplexity": float("nan")}, "perplexity is nan: give a finite number"),
        ({"perplexity": None}, "perplexity is missing"),
        ({"perplexity": 0.5}, "perplexity of at least 1"),
        ({"accuracy": 0.5}, "accuracy in a line of its own"),
        ({"se": -1.0}, "se is -1.0: give 0 or more"),
        ({"samples": 0}, "samples is 0: give 1 or more"),
        ({"against": "full attention"}, "difference is missing"),
    ],
)
def test_measurements_that_are_none_are_refused(results: Results, changes, message):
    with pytest.raises(ValueError, match=message):
        results.add(LINE | changes)
    assert not results.path.exists()


@pytest.mark.parametrize("missing", ["table", "method", "read_length", "seed", "steps", "se", "samples", "perplexity"])
def test_fields_are_asked_for(results: Results, missing):
    line = {name: value for name, value in LINE.items() if name != missing}
    with pytest.raises(ValueError, match="measures nothing" if missing == "perplexity" else missing):
        results.add(line)


def test_an_accuracy_is_a_share(results: Results):
    line = {name: value for name, value in LINE.items() if name not in ("perplexity", "se")}
    with pytest.raises(ValueError, match="accuracy is 98: give a share from 0 to 1"):
        results.add(line | {"accuracy": 98})


@pytest.mark.parametrize("text", ["{not json}\n", "[1]\n", "\n"])
def test_what_is_no_measurement_is_told_with_its_line(results: Results, text):
    results.add(LINE)
    with results.path.open("a") as file:
        file.write(text)
    with pytest.raises(ValueError, match=r"results.jsonl, line 2 is not (a )?JSON"):
        Results(results.path)


def test_a_missing_folder_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the folder .*nowhere does not exist"):
        Results(tmp_path / "nowhere" / "results.jsonl")


def test_settings_of_the_paper_are_found(results: Results):
    add_perplexities(results, landmark(2048, 4), 20.0, 21.0)
    add_perplexities(results, full(), 22.0)
    assert [line["seed"] for line in results.find(**landmark(2048, 4))] == [0, 1]
    assert not results.has(**landmark(2048, 2))


def test_lines_of_earlier_releases_come_under_the_names_of_today(tmp_path: Path):
    old = {name: value for name, value in LINE.items() if name not in ("perplexity", "se")}
    old |= {
        "table": "pass_key",
        "method": "plain ancestor",
        "model": "0.9M weights",
        "weights": "0.9M",
        "accuracy": 0.5,
    }
    (tmp_path / "results.jsonl").write_text(json.dumps(old) + "\n")
    (line,) = Results(tmp_path / "results.jsonl").lines
    assert (line["table"], line["method"]) == ("passkey", "base model")
    assert (line["model"], line["parameters"], line["accuracy"]) == ("0.9M parameters", "0.9M", 0.5)
    assert "weights" not in line
