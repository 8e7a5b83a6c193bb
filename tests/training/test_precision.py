"""Forward passes in 16 bits."""

import json

import pytest

from landmark.training.run import train


def losses(options, out, precision):
    log = out.with_suffix(".jsonl")
    train(options(out=out, precision=precision, json=str(log), recipe=None, steps=2, window_positions=96, batch_size=4))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


def test_bfloat16_loses_little(options, tmp_path):
    exact = losses(options, tmp_path / "float32", "float32")
    rounded = losses(options, tmp_path / "bfloat16", "bfloat16")
    assert rounded == pytest.approx(exact, abs=0.01)
    assert rounded != exact
