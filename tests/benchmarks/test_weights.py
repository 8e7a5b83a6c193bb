"""Weights in fewer bits, at a tiny size."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).parent))

from test_laptop import files as files  # a tiny model, its adapter and a text

from benchmarks.__main__ import BENCHMARKS
from benchmarks.weights import GROUP, in_4_bits


def test_rows_of_products_and_of_perplexity(files, capsys):
    model, adapter, text = files[1], files[3], files[7]
    arguments = ["weights", model, "--adapter", adapter, "--texts", text, "--length", "9", "--windows", "2"]
    assert BENCHMARKS.main([*arguments, "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    products, texts = [row for row in rows if "us" in row], [row for row in rows if "perplexity" in row]
    assert len({row["weights"] for row in products}) == 5
    assert {(row["outputs"], row["inputs"]) for row in products} >= {(64, 64), (32, 64)}
    assert [row["weights"] for row in texts] == ["8 bits", "4 bits, the head in 8", "4 bits"]
    by_bits = [abs(row["difference_nats"]) for row in texts]
    assert 0 < by_bits[0] < by_bits[1]


def test_four_bits_have_a_scale_for_each_group():
    weight = torch.randn(3, 4 * GROUP)
    weight[1, :GROUP] = 0
    codes, scales = in_4_bits(weight)
    assert codes.min() == -8
    assert codes.max() <= 7
    error = (codes.unflatten(1, (-1, GROUP)) * scales[..., None] - weight.unflatten(1, (-1, GROUP))).abs()
    assert (error <= scales[..., None].abs() * 1.001).all()
    assert not (codes * 1.0)[1, :GROUP].any()
