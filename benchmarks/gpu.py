"""Checks and times everything on a CUDA device, in under ten minutes, and says what met its target.

    python benchmarks/gpu.py [ROWS.jsonl]

Run in a checkout with the package and its development tools installed. First the tests of the kernels and of memory
run on the device, then the benchmarks. All rows go to ROWS.jsonl (gpu-rows.jsonl if left out); the table at the end
sets the figures beside their targets. Exit code: 0 all met, 1 something failed or missed its target, 2 no CUDA device.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
SECONDS = 570  # for everything
TIME_TARGET = 1.15  # of FlashAttention's time, forward and backward
MEMORY_TARGET = 1.1  # of its peak memory beyond the inputs
GROWTH_TARGET = 1.5  # of the time of a step over 8,192 tokens, over 1,048,576
SHORT, LONG = 8192, 1048576

TESTS = ["-m", "pytest", "-q", "-n", "8", "tests/ops", "tests/memory"]  # by one process they take all the time
BENCHES = (
    ["ops", "--contenders", "cudnn,blockwise,fused", "--rounds", "15"],
    ["ops", "--contenders", "flex", "--lengths", "8192", "--heads", "16", "--head-dim", "128"],
    ["decode", "--contexts", f"{SHORT},131072,{LONG}", "--batch-sizes", "1", "--dense"],
    ["decode", "--contexts", f"{SHORT},131072", "--batch-sizes", "8"],
    ["read", "--contexts", "8000,32000,128000"],
)


class Verdict(NamedTuple):
    """One line of the table; `met` is None where there is no target."""

    what: str
    figure: str
    target: str
    met: bool | None


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device; nothing was checked and nothing was timed", file=sys.stderr)
        return 2
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "gpu-rows.jsonl")
    deadline = time.monotonic() + SECONDS
    told = [Verdict("tests/ops and tests/memory on the device", *_tested(deadline))]
    rows: list[Row] = []
    for bench in BENCHES:
        found, problem = _rows(bench, deadline)
        rows += found
        if problem:
            told.append(Verdict(f"benchmarks {' '.join(bench)}", problem, "runs", False))
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told += verdicts(rows)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; all rows are in {target}\n")
    print(table(told))
    return 0 if all(verdict.met is not False for verdict in told) else 1


def _tested(deadline: float) -> tuple[str, str, bool]:
    try:
        done = subprocess.run([sys.executable, *TESTS], cwd=ROOT, env=_environment(), timeout=_left(deadline))
    except subprocess.TimeoutExpired:
        return "no time left", "pass", False
    return f"exit code {done.returncode}", "pass", done.returncode == 0


def _rows(bench: list[str], deadline: float) -> tuple[list[Row], str]:
    """The rows of one benchmark, and what went wrong. Rows printed before a failure count."""
    command = [sys.executable, "-m", "benchmarks", *bench, "--device", "cuda", "--json"]
    print(*command[1:], file=sys.stderr, flush=True)
    with subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            out, _ = process.communicate(timeout=_left(deadline))
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            return _parsed(out), "no time left"
    return _parsed(out), f"exit code {process.returncode}" if process.returncode else ""


def _parsed(out: str) -> list[Row]:
    return [json.loads(line) for line in out.splitlines() if line.endswith("}")]


def _environment() -> dict[str, str]:
    """The interpreter of Triton would hide what the device does."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def _left(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())


def verdicts(rows: list[Row]) -> list[Verdict]:
    """What the rows say, with targets where there are any; a figure that is missing has missed its target."""
    return [*_operations(rows), *_decoding(rows), *_reading(rows)]


def _operations(rows: list[Row]) -> list[Verdict]:
    told = []
    shape = ("batch", "heads", "kv_heads", "length", "head_dim", "block_size", "pass")
    cases: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if row["bench"] == "ops":
            cases.setdefault(tuple(row[name] for name in shape), {})[row["contender"]] = row
    for (batch, heads, kv_heads, length, dim, block, name), by_contender in cases.items():
        what = f"{name}, {batch} x {heads}/{kv_heads} x {length} x {dim}, block {block}"
        both = name == "forward+backward"
        base, fused = by_contender["sdpa"], by_contender.get("fused")
        for contender, row in by_contender.items():
            if row["skipped"]:
                told.append(Verdict(f"{what}: {contender}", row["skipped"], "", None))
        if fused is None or fused["skipped"] or base["skipped"]:
            told.append(Verdict(f"{what}: fused against flash", "missing", f"<= {TIME_TARGET}", False))
            continue
        for contender, row in by_contender.items():
            if contender == "fused" and both:
                told.append(_ratio(f"{what}: time of fused against flash", row["ratio"], TIME_TARGET))
                memory = row["peak_extra_bytes"] / base["peak_extra_bytes"]
                told.append(_ratio(f"{what}: peak memory of fused against flash", memory, MEMORY_TARGET))
            elif contender != "sdpa" and not row["skipped"]:
                told.append(Verdict(f"{what}: time of {contender} against flash", f"{row['ratio']:.3f}", "", None))
    if not cases:
        told.append(Verdict("forward+backward: fused against flash", "missing", f"<= {TIME_TARGET}", False))
    return told


def _decoding(rows: list[Row]) -> list[Verdict]:
    steps = {
        (row["batch"], row["context"], row["contender"]): row["median_s"] * 1000
        for row in rows
        if row["bench"] == "decode" and not row["skipped"]
    }
    told = [
        Verdict(f"decode, batch {batch}, {context:,} tokens: {contender}", f"{milliseconds:.3f} ms", "", None)
        for (batch, context, contender), milliseconds in steps.items()
    ]
    short, long = (steps.get((1, context, "memory")) for context in (SHORT, LONG))
    growth = None if short is None or long is None else long / short
    told.append(_ratio(f"decode, batch 1: {LONG:,} tokens against {SHORT:,}", growth, GROWTH_TARGET))
    return told


def _reading(rows: list[Row]) -> list[Verdict]:
    return [
        Verdict(
            f"read, {row['context']:,} tokens: {row['contender']}", f"{row['tokens_per_s']:,.0f} tokens/s", "", None
        )
        for row in rows
        if row["bench"] == "read" and not row["skipped"]
    ]


def _ratio(what: str, figure: float | None, target: float) -> Verdict:
    if figure is None:
        return Verdict(what, "missing", f"<= {target}", False)
    return Verdict(what, f"{figure:.3f}", f"<= {target}", figure <= target)


def table(told: list[Verdict]) -> str:
    """Columns: what, figure, target, verdict."""
    words = {True: "PASS", False: "FAIL", None: ""}
    lines = [("what", "figure", "target", "")] + [(*verdict[:3], words[verdict.met]) for verdict in told]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    raise SystemExit(main())
