"""Contexts of thousands of tokens, in the place of millions: rows, passkeys that are found again, masks taken away."""

import json

import pytest

from benchmarks import long_context
from benchmarks.__main__ import BENCHMARKS
from benchmarks.models import model_and_tokenizer
from landmark.cli.program import USAGE_ERROR
from landmark.contexts.context import Context


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "book.txt"
    path.write_text("it was a calm sea and jim looked at the ships for a long while .\n" * 40, encoding="utf-8")
    return path


@pytest.fixture
def context(tmp_path, book, model_folder, capsys):
    path = tmp_path / "context"
    arguments = [str(path), "--model", str(model_folder), "--texts", str(book), "--tokens", "600", "--passkeys", "2"]
    arguments += ["--kv-dtype", "int8"]
    rows = rows_of(["long-context", "read", *arguments], capsys)
    assert rows[-1]["tokens"] > 600
    assert all(row["s_per_1000_tokens"] > 0 and row["disk_mb"] > 0 for row in rows)
    # Repeated, it resumes: nothing is left to read.
    assert rows_of(["long-context", "read", *arguments], capsys)[-1]["tokens"] == rows[-1]["tokens"]
    return path


def rows_of(arguments: list[str], capsys) -> list[dict]:
    assert BENCHMARKS.main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_passkey_is_asked_for(context, model_folder, capsys):
    arguments = [str(context), "--model", str(model_folder), "--retrieve", "1", "--baseline", str(context)]
    *answers, summary = rows_of(["long-context", "ask", *arguments], capsys)
    assert [0 < row["depth"] < 1 for row in answers] == [True, True]
    assert all(len(row["passkey"]) == 5 for row in answers)
    assert summary["asked"] == 2
    assert summary["right"] == sum(row["answer"] == row["passkey"] for row in answers)
    assert summary["ratio"] > 0


def test_masked_blocks_are_not_found_until_they_are_unmasked(context, model_folder):
    opened = Context.open(context, *model_and_tokenizer(model_folder))
    keys = long_context.stated_passkeys(opened)
    assert [opened.text(document).count(key) >= 1 for key, _ in keys for document in opened.documents[:1]] == [True] * 2
    blocks = [block for _, stating in keys for block in stating]

    def found() -> set[int]:
        branch = opened.cache.fork()
        branch.start_trace()
        ids = opened.tokenizer("The pass key is", return_tensors="pt").input_ids
        opened.model(input_ids=ids, past_key_values=branch)
        return {int(block) for layer, chosen in branch.trace().blocks.items() if layer for block in chosen.flatten()}

    # The newest are scored beside the index.
    others = set(range(opened.blocks - 4)) - set(blocks)
    indexes = long_context.mask(opened, sorted(others))
    assert not found() & others
    long_context.unmask(indexes)
    assert found() & others


def test_every_selection_is_counted(context, model_folder, capsys):
    arguments = [str(context), "--model", str(model_folder), "--new-tokens", "3"]
    rows = rows_of(["long-context", "decode", *arguments], capsys)
    assert [row["selection"] for row in rows] == ["per_token_and_head", "per_group", "per_token", "per_head"]
    assert all(row["blocks_per_token"] > 0 and row["all_kb"] > row["read_kb_per_token"] > 0 for row in rows)


def test_growth(context, book, model_folder, capsys, monkeypatch):
    monkeypatch.setattr(long_context, "TURN", 40)
    arguments = ["--model", str(model_folder), "--text", str(book), "--lengths", "200,100,300", "--rounds", "2"]
    rows = rows_of(["long-context", "growth", *arguments], capsys)
    assert [(row["tokens"], row["shortest"]) for row in rows] == [(200, 100), (300, 100)]
    assert all(0 < row["lower_quartile"] <= row["ratio"] <= row["upper_quartile"] for row in rows)
    (row,) = rows_of(["long-context", "growth", *arguments, "--context", str(context)], capsys)
    assert row["tokens"] > 600


def test_nothing_to_read(tmp_path, capsys):
    assert BENCHMARKS.main(["long-context", "read", str(tmp_path / "new")]) == USAGE_ERROR
    assert "name texts with --texts" in capsys.readouterr().err
