"""The acceptance run on a GPU: verdicts from rows, its dry run on a CPU, and how it goes on after an interruption."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import BENCHMARKS


def training(ratio, dim=64, which="forward+backward"):
    figures = {"ratio": ratio, "head_dim": dim, "skipped": None, "median_s": 0.01}
    return {"bench": "ops", "pass": which, "method": "fused", **figures}


def step(context, milliseconds, method="memory", roofline=2.5):
    figures = {"median_s": milliseconds / 1000, "times_roofline": roofline, "skipped": None}
    return {"bench": "decode", "context": context, "method": method, **figures}


def chunk(context, speed, method="memory"):
    return {"bench": "read", "context": context, "method": method, "tokens_per_s": speed, "skipped": None}


def judged(rows):
    return {verdict.what: verdict.met for verdict in gpu.verdicts(rows) if verdict.met is not None}


def good_rows(worse=0.0):
    """Rows that meet every target exactly, or miss it."""
    rows = [step(8192, 10.0), step(131072, 13.0 + worse), step(1048576, 15.0 + worse, roofline=2.5 + worse)]
    rows += [step(131072, 10.0, "no memory"), training(1.3 + worse), training(9.0, 256), training(9.0, 64, "forward")]
    rows += [chunk(131072, 700.0 - worse), chunk(131072, 1000.0, "no memory"), chunk(131072, 700.0, "full")]
    return [*rows, chunk(32768, 500.0 - worse), chunk(32768, 500.0, "full")]


def test_targets():
    assert len(judged(good_rows())) == 7
    assert set(judged(good_rows()).values()) == {True}
    assert set(judged(good_rows(worse=0.1)).values()) == {False}


def test_what_is_missing_has_failed():
    assert judged([]).keys() == judged(good_rows()).keys()
    assert set(judged([]).values()) == {False}
    without = [row | {"skipped": "does not fit"} if row["bench"] == "decode" else row for row in good_rows()]
    assert not judged(without)["decode: memory against the roofline"]


def test_stages_of_the_dry_run_are_those_of_the_real_one():
    real, small = gpu.stages(small=False), gpu.stages(small=True)
    assert [stage.command[2] for stage in real[1:-2]] == [stage.command[2] for stage in small]
    assert all("cuda" in stage.command for stage in real[1:])


@pytest.fixture
def within(monkeypatch, capsys):
    """Runs stages in this process, without a measurement of the machine."""
    monkeypatch.setattr("benchmarks.machine.MATMUL_WIDTH", {"cpu": 64})
    monkeypatch.setattr("benchmarks.machine.COPIED_BYTES", {"cpu": 1 << 16})
    ran = []

    def run(stage, seconds, add):
        assert 0 < seconds <= 1000
        ran.append(stage.name)
        capsys.readouterr()
        code = BENCHMARKS.main(stage.command[2:])
        for line in capsys.readouterr().out.splitlines():
            add({"stage": stage.name} | json.loads(line))
        add({"stage": stage.name, "exit": code, "seconds": 1.0, "said": ""})

    monkeypatch.setattr(gpu, "_run", run)
    return ran


def test_a_dry_run_goes_on_where_it_was_cut_off(tmp_path, within, monkeypatch, capsys):
    file = tmp_path / "rows.jsonl"
    command = ["gpu", "--small", "--seconds", "1000", "--out", str(file)]
    assert BENCHMARKS.main(command) == 0
    names = [stage.name for stage in gpu.stages(small=True)]
    assert within == names
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["bench"] for row in rows if "exit" not in row} == {"gpu", "decode", "read", "launches", "ops"}
    assert all(row.get("skipped") is None for row in rows)
    counted = [row for row in rows if row.get("bench") == "launches"]
    assert len(counted) == 8
    assert all(row["operations"] > 0 and row["launches"] == 0 for row in counted)

    kept = [line for line in file.read_text().splitlines(keepends=True) if names[-1] not in line]
    file.write_text("".join(kept) + '{"stage": "tra')  # cut off within a line
    within.clear()
    assert BENCHMARKS.main(command) == 0
    assert within == names[-1:]
    file.write_text(file.read_text().replace('"torch": "', '"torch": "9.'))
    assert BENCHMARKS.main(command) == 2
    assert "rows of another run" in capsys.readouterr().err


def test_a_stage_ends_with_its_time_and_has_no_end_then():
    rows = []
    waiting = gpu.Stage("slow", ["-c", "import time; print('{}', flush=True); time.sleep(60)"])
    gpu._run(waiting, 2.0, rows.append)
    assert rows in ([{"stage": "slow"}], [])  # a slow start may leave no time for the row
    gpu._run(gpu.Stage("failing", ["-c", "print('two failed'); raise SystemExit(3)"]), 60.0, rows.append)
    assert (rows[-1]["exit"], rows[-1]["said"]) == (3, "two failed")
    told = gpu._ends([waiting, gpu.Stage("failing", [])], rows)
    assert [(line.figure, line.met) for line in told] == [("no time left", False), ("two failed", False)]


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
