"""Acceptance run on a CUDA device, in under ten minutes: tests of the kernels, then benchmarks with targets."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.options import GpuOptions

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
SECONDS = 570  # for everything
TIME_TARGET = 1.15  # of FlashAttention's time, forward and backward
MEMORY_TARGET = 1.1  # of its peak memory beyond the inputs
GROWTH_TARGET = 1.5  # of the time of a step over 8,192 tokens, over 1,048,576
SHORT, LONG = 8192, 1048576

TESTS = ["-m", "pytest", "-q", "-n", "8", "tests/ops", "tests/memory"]  # one process would take all the time
BENCHES = (
    ["ops", "--methods", "cudnn,blockwise,fused", "--rounds", "15"],
    ["ops", "--methods", "flex", "--lengths", "8192", "--heads", "16", "--head-dim", "128"],
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


def run(options: GpuOptions) -> int:
    """Writes all rows, prints figures and targets; 1 if something failed or missed its target."""
    if not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device: nothing was tested and nothing was timed")
    deadline = time.monotonic() + SECONDS
    lines = [Verdict("tests/ops and tests/memory on the device", *_tested(deadline))]
    rows: list[Row] = []
    for bench in BENCHES:
        found, problem = _rows(bench, deadline)
        rows += found
        if problem:
            lines.append(Verdict(f"benchmarks {' '.join(bench)}", problem, "runs", False))
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines += verdicts(rows)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; all rows are in {options.out}\n")
    print(table(lines))
    return 0 if all(line.met is not False for line in lines) else 1


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
    """Without Triton's interpreter, which would not run on the device."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def _left(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())


def verdicts(rows: list[Row]) -> list[Verdict]:
    """The figures of the rows and their targets; a missing figure has missed its target."""
    return [*_operations(rows), *_decoding(rows), *_reading(rows)]


def _operations(rows: list[Row]) -> list[Verdict]:
    verdicts = []
    shape = ("batch", "heads", "kv_heads", "length", "head_dim", "block_size", "pass")
    cases: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if row["bench"] == "ops":
            cases.setdefault(tuple(row[name] for name in shape), {})[row["method"]] = row
    for (batch, heads, kv_heads, length, dim, block, name), by_method in cases.items():
        what = f"{name}, {batch} x {heads}/{kv_heads} x {length} x {dim}, block {block}"
        both = name == "forward+backward"
        baseline, fused = by_method["sdpa"], by_method.get("fused")
        for method, row in by_method.items():
            if row["skipped"]:
                verdicts.append(Verdict(f"{what}: {method}", row["skipped"], "", None))
        if fused is None or fused["skipped"] or baseline["skipped"]:
            verdicts.append(Verdict(f"{what}: fused against flash", "missing", f"<= {TIME_TARGET}", False))
            continue
        for method, row in by_method.items():
            if method == "fused" and both:
                verdicts.append(_ratio(f"{what}: time of fused against flash", row["ratio"], TIME_TARGET))
                memory = row["peak_extra_bytes"] / baseline["peak_extra_bytes"]
                verdicts.append(_ratio(f"{what}: peak memory of fused against flash", memory, MEMORY_TARGET))
            elif method != "sdpa" and not row["skipped"]:
                verdicts.append(Verdict(f"{what}: time of {method} against flash", f"{row['ratio']:.3f}", "", None))
    if not cases:
        verdicts.append(Verdict("forward+backward: fused against flash", "missing", f"<= {TIME_TARGET}", False))
    return verdicts


def _decoding(rows: list[Row]) -> list[Verdict]:
    steps = {
        (row["batch"], row["context"], row["method"]): row["median_s"] * 1000
        for row in rows
        if row["bench"] == "decode" and not row["skipped"]
    }
    verdicts = [
        Verdict(f"decode, batch {batch}, {context:,} tokens: {method}", f"{milliseconds:.3f} ms", "", None)
        for (batch, context, method), milliseconds in steps.items()
    ]
    short, long = (steps.get((1, context, "memory")) for context in (SHORT, LONG))
    growth = None if short is None or long is None else long / short
    verdicts.append(_ratio(f"decode, batch 1: {LONG:,} tokens against {SHORT:,}", growth, GROWTH_TARGET))
    return verdicts


def _reading(rows: list[Row]) -> list[Verdict]:
    return [
        Verdict(f"read, {row['context']:,} tokens: {row['method']}", f"{row['tokens_per_s']:,.0f} tokens/s", "", None)
        for row in rows
        if row["bench"] == "read" and not row["skipped"]
    ]


def _ratio(what: str, figure: float | None, target: float) -> Verdict:
    if figure is None:
        return Verdict(what, "missing", f"<= {target}", False)
    return Verdict(what, f"{figure:.3f}", f"<= {target}", figure <= target)


def table(verdicts: list[Verdict]) -> str:
    """Columns: what, figure, target, verdict."""
    words = {True: "PASS", False: "FAIL", None: ""}
    lines = [("what", "figure", "target", "")] + [(*verdict[:3], words[verdict.met]) for verdict in verdicts]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in lines
    )
