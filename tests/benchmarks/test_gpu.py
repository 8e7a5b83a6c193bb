"""The acceptance run on a GPU: verdicts from rows, and a refusal where there is no device."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def operation(method, ratio=1.0, memory=1000, skipped=None, which="forward+backward"):
    shape = {"batch": 1, "heads": 16, "kv_heads": 16, "length": 8192, "head_dim": 128, "block_size": 63}
    figures = {"ratio": ratio, "peak_extra_bytes": memory, "skipped": skipped, "median_s": 0.01}
    return {"bench": "ops", "pass": which, "method": method, **shape, **figures}


def step(context, milliseconds, method="memory"):
    figures = {"median_s": milliseconds / 1000, "skipped": None}
    return {"bench": "decode", "batch": 1, "context": context, "method": method, **figures}


def judged(rows):
    return {verdict.what.split(": ")[-1]: verdict.met for verdict in gpu.verdicts(rows) if verdict.met is not None}


@pytest.mark.parametrize(
    ("ratio", "memory", "long", "met"),
    [(1.15, 1100, 15.0, [True, True, True]), (1.16, 1101, 15.1, [False, False, False])],
)
def test_targets(ratio, memory, long, met):
    rows = [operation("sdpa"), operation("fused", ratio, memory), step(8192, 10.0), step(1048576, long)]
    assert judged(rows) == {
        "time of fused against flash": met[0],
        "peak memory of fused against flash": met[1],
        "1,048,576 tokens against 8,192": met[2],
    }


def test_what_is_missing_has_failed():
    assert set(judged([]).values()) == {False}
    assert len(judged([])) == 2
    assert not judged([operation("sdpa"), operation("fused", skipped="ValueError: no")])["fused against flash"]
    assert not judged([step(8192, 10.0)])["1,048,576 tokens against 8,192"]


def test_the_forward_alone_and_other_methods_have_no_target():
    rows = [operation("sdpa", which="forward"), operation("fused", 9.0, which="forward"), operation("sdpa")]
    rows += [operation("fused"), operation("blockwise", 9.0), operation("flex", skipped="no compiler")]
    figures = {verdict.what: (verdict.figure, verdict.met) for verdict in gpu.verdicts(rows)}
    case = "1 x 16/16 x 8192 x 128, block 63"
    assert figures[f"forward, {case}: time of fused against flash"] == ("9.000", None)
    assert figures[f"forward+backward, {case}: time of blockwise against flash"] == ("9.000", None)
    assert figures[f"forward+backward, {case}: flex"] == ("no compiler", None)


def test_table():
    verdicts = [gpu.Verdict("a", "1.2", "<= 1", False), gpu.Verdict("longer", "3 ms", "", None)]
    assert gpu.table(verdicts).splitlines() == [
        "what    figure  target",
        "a       1.2     <= 1    FAIL",
        "longer  3 ms",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_fails_loudly(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "gpu", "--out", str(tmp_path / "rows.jsonl")]
    result = subprocess.run(command, cwd=Path(gpu.__file__).parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no CUDA device" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_benchmark_that_fails_is_reported(capfd):
    assert gpu._rows(["ops", "--rounds", "1"], time.monotonic() + 60) == ([], "exit code 2")
    assert "torch sees no CUDA device" in capfd.readouterr().err
