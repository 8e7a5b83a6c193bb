"""Rows of the benchmarks of bounded memory, at a tiny size."""

import json
import sys

import pytest

from benchmarks import tiers
from benchmarks.__main__ import BENCHMARKS
from landmark.cli.program import USAGE_ERROR


@pytest.fixture
def text(tmp_path, model_folder):
    path = tmp_path / "book.txt"
    path.write_text("it was a calm sea and jim looked at the ships for a long while . " * 40, encoding="utf-8")
    return ["--model", str(model_folder), "--text", str(path), "--tokens", "300", "--new-tokens", "4"]


def rows_of(arguments: list[str], capsys) -> list[dict]:
    assert BENCHMARKS.main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_budgets_take_turns_and_change_no_logits(text, capsys, monkeypatch):
    monkeypatch.setattr(tiers, "TURN", 100)
    whole, bounded = rows_of(["tiers", "read", *text, "--host-budgets", "12KB"], capsys)
    assert (whole["host_budget"], bounded["host_budget"]) == (None, "12KB")
    assert (whole["reading_ratio"], whole["decoding_ratio"]) == (1, 1)
    assert "decoding_hits" not in whole
    assert 0 <= bounded["decoding_hits"] <= 1
    assert bounded["decoding_file_kb_per_token"] > 0
    assert BENCHMARKS.main(["tiers", "read", *text, "--host-budgets", "12KB"]) == 0
    assert "host_budget 12KB, " in capsys.readouterr().out


def test_overlap_of_opened_blocks(text, capsys):
    rows = rows_of(["tiers", "overlap", *text], capsys)
    assert {row["layer"] for row in rows} == {1}
    assert all(0 <= row["opened_for_the_token_before"] <= 1 for row in rows)


def test_a_text_that_is_too_short(text, capsys):
    assert BENCHMARKS.main(["tiers", "read", *text, "--tokens", "100000"]) == USAGE_ERROR
    assert "name a longer one with --text" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/PID/smaps_rollup")
def test_rows_of_readers(tmp_path, model_folder, capsys):
    arguments = ["--model", str(model_folder), "--tokens", "300", "--readers", "1", "--folder", str(tmp_path)]
    rows = rows_of(["tiers", "readers", *arguments, "--host-budget", "12KB"], capsys)
    assert [(row["keys"], row["readers"]) for row in rows] == [("mapped", 1), ("private", 1)]
    assert all(0 < row["pss_mb"] <= row["pss_mb_of_all"] for row in rows)


def test_rows_of_blocks_in_int8(tmp_path, model_folder, capsys):
    book = tmp_path / "book.txt"
    book.write_text("it was a calm sea and jim looked at the ships for a long while . " * 40, encoding="utf-8")
    arguments = ["--texts", str(book), "--windows", "2", "--length", "200", "--samples", "1", "--passkey-length", "300"]
    *fetched, scored, asked = rows_of(
        ["tiers", "int8", "--model", str(model_folder), "--host-budget", "20KB", *arguments], capsys
    )
    assert [row["fetched_at_once"] for row in fetched] == [4, 32, 512]
    assert all(row["int8_bytes"] < row["as_it_is_bytes"] for row in fetched)
    assert scored["windows"] == 2
    assert scored["as_it_is_perplexity"] > 1
    assert abs(scored["difference_nats"]) > 0
    assert asked["passkeys"] == 1
