"""The load of `python -m benchmarks serve`, on a server of the tests."""

import json

from serving import NAME

from benchmarks.__main__ import BENCHMARKS


def test_rows_of_one_client_and_of_two(served, capsys):
    arguments = ["serve", "--url", served.url, "--model", f"{NAME}@library", "--clients", "1,2", "--seconds", "1"]
    assert BENCHMARKS.main([*arguments, "--new-tokens", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["clients"] for row in rows] == [1, 2]
    for row in rows:
        assert round(row["tokens_s"] * row["seconds"]) == 3 * row["answers"] > 0
        assert row["errors"] == 0
        assert row["first_token_median_ms"] > 0
        assert row["resident_mb"] > 1
        assert row["processor_ms_per_token"] > 0
