"""Rows of the trials of `landmark serve`, with few of each."""

import json

from benchmarks.__main__ import BENCHMARKS
from landmark.cli.program import USAGE_ERROR


def test_rows_of_serve_trials(tmp_path, capsys):
    amounts = ["--kills", "1", "--requests", "20", "--seed", "3"]
    assert (
        BENCHMARKS.main(["serve-trials", *amounts, "--parts", "hostile,kills", "--folder", str(tmp_path), "--json"])
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["trial"] for row in rows] == ["hostile", "kills"]
    assert all(row["seed"] == 3 and row["failures"] == [] for row in rows)
    assert sum(rows[0]["by_status"].values()) == 20
    assert rows[1]["kills"] == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_part_of_serve_trials(capsys):
    assert BENCHMARKS.main(["serve-trials", "--parts", "kills,ghosts"]) == USAGE_ERROR
    assert "there is no part 'ghosts'" in capsys.readouterr().err
