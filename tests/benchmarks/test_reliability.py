"""Rows of the benchmark of reliability, with few trials."""

import json

from benchmarks import reliability
from benchmarks.__main__ import BENCHMARKS


def test_rows_of_reliability(tmp_path, capsys, monkeypatch):
    # The trials themselves are tested with contexts; every call of a session failing in turn takes minutes.
    monkeypatch.setattr(reliability, "_power_cuts", lambda root, draw: {"cuts": 0})
    monkeypatch.setattr(reliability, "_refused_calls", lambda root: {"refused": 0})
    arguments = ["--kills", "1", "--flips", "1", "--seconds", "0.5", "--folder", str(tmp_path), "--seed", "3"]
    assert BENCHMARKS.main(["reliability", *arguments, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["trial"] for row in rows] == ["kills", "readers", "flips", "power_cuts", "refused_calls"]
    assert all(row["seed"] == 3 and row["trial_seconds"] >= 0 for row in rows)
    flips = rows[2]
    assert flips["named_by_verify"] == flips["flips"] == flips["regions"]
    assert list(tmp_path.iterdir()) == []
