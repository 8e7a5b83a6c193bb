import pytest

from reproduce.runs.run import add_comparisons, difference
from reproduce.tables.results import Results

ROW = {"table": "language_modeling", "corpus": "books", "seed": 0, "steps": 9, "se": None, "samples": 3}
FULL = ROW | {"method": "full attention", "read_length": 512, "local": 512, "perplexity": 9.0, "nll": [2.0, 3.0, 4.0]}
OURS = ROW | {"method": "landmark", "read_length": 512, "local": 250, "retrieve": 2, "blocks": 10, "perplexity": 8.0}
OURS |= {"nll": [1.9, 2.8, 3.9]}


def test_a_difference_is_that_of_the_windows():
    line = difference(OURS, FULL)
    assert line["difference"] == pytest.approx(-0.4 / 3)
    # The gaps are -0.1, -0.2, -0.1: their deviation is 0.1 / sqrt(3).
    assert line["difference_se"] == pytest.approx(0.1 / 3)
    assert (line["method"], line["against"], line["against_local"]) == ("landmark", "full attention", 512)
    assert line["against_retrieve"] is None
    assert "against_read_length" not in line, "both read as much"


def test_pairs_are_compared_once_and_only_when_both_are_there(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add(OURS)
    add_comparisons(results, {})
    assert len(results.lines) == 1
    results.add(FULL | {"seed": 1})
    add_comparisons(results, {})
    assert len(results.lines) == 2, "another seed is another model"
    results.add(FULL)
    for _ in range(2):
        add_comparisons(results, {"date": "today"})
    assert [line["against"] for line in results.lines if "against" in line] == ["full attention"]


def test_a_difference_that_another_machine_rounded_otherwise_is_kept(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    there = difference(OURS, FULL)
    for line in (OURS, FULL, there | {"difference_se": there["difference_se"] * (1 + 1e-15)}):
        results.add(line)
    add_comparisons(results, {})
    assert len(results.lines) == 3
