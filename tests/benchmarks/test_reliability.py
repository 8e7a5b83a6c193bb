"""Rows of the benchmark of reliability, with few trials."""

import json

from benchmarks import reliability
from benchmarks.__main__ import BENCHMARKS
from landmark.cli.program import USAGE_ERROR


def test_rows_of_reliability(tmp_path, capsys):
    # The trials themselves are tested with contexts; every call of a session failing in turn takes minutes.
    parts = ["answers", "forks", "kills", "readers", "flips"]
    amounts = ["--kills", "1", "--flips", "1", "--forks", "1", "--seconds", "0.5", "--seed", "3"]
    arguments = [*amounts, "--parts", ",".join(parts), "--folder", str(tmp_path), "--json"]
    assert BENCHMARKS.main(["reliability", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(row["trial"] for row in rows)) == parts
    assert all(row["seed"] == 3 and row["trial_seconds"] >= 0 and row["failures"] == [] for row in rows)
    flips = rows[-1]
    assert flips["named_by_verify"] == flips["flips"] == flips["regions"]
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_hold_is_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reliability.hostile, "SLOWEST", 0.0)
    arguments = ["--parts", "hostile", "--hostile", "1", "--folder", str(tmp_path), "--json"]
    assert BENCHMARKS.main(["reliability", *arguments]) == 1
    assert all(json.loads(line)["failures"] for line in capsys.readouterr().out.splitlines())


def test_unknown_part_of_reliability(capsys):
    assert BENCHMARKS.main(["reliability", "--parts", "kills,ghosts"]) == USAGE_ERROR
    assert "there is no part 'ghosts'" in capsys.readouterr().err
