"""Acceptance run on a CUDA device, in under ten minutes: tests of the kernels, then benchmarks with targets.

Stages are commands of their own, small ones first, so that a fault in one ends no other. Every row is written when it
is known, and a stage that came to its end is not run again: a run that was cut off goes on where it was.
"""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import processor
from benchmarks.options import GpuOptions

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
SHORT, MIDDLE, LONG = 8192, 131072, 1048576  # tokens of contexts
FULL_FROM = 32768  # tokens behind which prefill is to be faster than full attention

# Targets.
TRAINING = 1.3  # of FlashAttention's time, forward and backward, heads of 64
STEP = 1.3  # of the time of a step without memory, behind MIDDLE tokens
GROWTH = 1.5  # of the time of a step over SHORT tokens, over LONG
ROOFLINE = 2.5  # of the time that the bytes of a step take
PREFILL = 0.7  # of the speed without memory, behind MIDDLE tokens

_TESTS = "-m pytest -q -n 8 tests/ops tests/memory"  # one process would take all the time
_LLAMA_8B = "--layers 8 --heads 32 --kv-heads 8 --width 4096 --intermediate 14336 --block-size 63 --local-blocks 1"
_TINY = "--layers 2 --heads 4 --kv-heads 2 --width 32 --block-size 7 --local-blocks 1"


class Stage(NamedTuple):
    """A command: the arguments of Python."""

    name: str
    command: list[str]


class Verdict(NamedTuple):
    """One line of the table; `met` is None where there is no target."""

    what: str
    figure: str
    target: str
    met: bool | None


def stages(*, small: bool) -> list[Stage]:
    """All stages, in the order in which they run; `small`, those of a dry run on a CPU."""
    short, full, middle, long = (70, 84, 98, 140) if small else (SHORT, FULL_FROM, MIDDLE, LONG)
    usual = f"{_TINY} --device cpu --threads 1" if small else f"{_LLAMA_8B} --device cuda"
    chunk = f"--chunk-size {14 if small else 2016}"
    rounds = f"--rounds {1 if small else 5}"
    read = f"read {usual} {rounds} {chunk} --full-limit {middle} --contexts"
    decode = f"decode {usual} {rounds} --batch-sizes 1 --steps 4 --methods 'memory,no memory,full' --contexts"
    launches = f"launches {usual} {chunk} --contexts"
    commands = {
        f"decode over {short:,} tokens": f"{decode} {short}",
        f"prefill behind {short:,} tokens": f"{read} {short}",
        f"launches behind {short:,} tokens": f"{launches} {short}",
        f"prefill behind {full:,} tokens": f"{read} {full}",
        f"decode over {middle:,} tokens": f"{decode} {middle}",
        f"launches behind {middle:,} tokens": f"{launches} {middle}",
        f"prefill behind {middle:,} tokens": f"{read} {middle}",
        f"decode over {long:,} tokens": f"{decode} {long}",
    }
    for dim in (8,) if small else (64, 128, 256):
        shape = f"--lengths {32 if small else 4096} --heads 16 --head-dim {dim} --block-size {7 if small else 63}"
        where = "--device cpu --threads 1 --methods blockwise" if small else "--device cuda --methods fused"
        commands[f"training, heads of {dim}"] = f"ops {shape} {rounds} {where}"
    tests = [] if small else [Stage("tests of the kernels", shlex.split(_TESTS))]
    return [*tests, *(Stage(name, shlex.split(f"-m benchmarks {line} --json")) for name, line in commands.items())]


def run(options: GpuOptions) -> int:
    """Runs what the file lacks, and prints figures and targets; 1 if something failed or missed its target."""
    if not options.small and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device: nothing was tested and nothing was timed; --small is a dry run")
    deadline = time.monotonic() + options.seconds
    name = processor() if options.small else torch.cuda.get_device_name()
    header = {"bench": "gpu", "machine": name, "torch": torch.__version__, "small": options.small}
    planned, rows = stages(small=options.small), _known(options.out, header)
    ended = {row["stage"] for row in rows if "exit" in row}
    with options.out.open("a", encoding="utf-8") as file:

        def add(row: Row) -> None:
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)

        if not rows:
            add(header)
        for stage in planned:
            left = deadline - time.monotonic()
            if stage.name not in ended and left > 0:
                _run(stage, left, add)
    lines = [*_ends(planned, rows), *([] if options.small else verdicts(rows))]
    print(f"\n{name}, torch {torch.__version__}; all rows are in {options.out}\n")
    print(table(lines))
    return 0 if all(line.met is not False for line in lines) else 1


def _known(file: Path, header: Row) -> list[Row]:
    """The rows of an earlier run; raises ValueError for those of another machine, or another release of torch."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a run may have been cut off within a line
    rows = [json.loads(line) for line in whole.splitlines()]
    if rows and rows[0] != header:
        raise ValueError(f"{file} has rows of another run ({rows[0]}): give another file, or delete it")
    if len(whole) < len(text):
        file.write_text(whole, encoding="utf-8")
    return rows


def _run(stage: Stage, seconds: float, add: Callable[[Row], object]) -> None:
    """Adds the rows of a stage as it prints them, and then how it ended, unless its time ran out."""
    print(*stage.command, file=sys.stderr, flush=True)
    started, over, last = time.monotonic(), threading.Event(), ""
    command = [sys.executable, *stage.command]
    with subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True) as process:

        def stop() -> None:
            over.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                add({"stage": stage.name} | json.loads(line))
            else:
                print(line, end="", file=sys.stderr, flush=True)
                last = line.strip() or last
        timer.cancel()
    if not over.is_set():
        seconds = round(time.monotonic() - started, 1)
        add({"stage": stage.name, "exit": process.returncode, "seconds": seconds, "said": last})


def _environment() -> dict[str, str]:
    """Without Triton's interpreter, which would not run on the device."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def _ends(planned: Iterable[Stage], rows: Iterable[Row]) -> list[Verdict]:
    """A line for each stage that failed or has not come to its end, and for the tests of the kernels."""
    ends = {row["stage"]: row for row in rows if "exit" in row}
    lines = []
    for stage in planned:
        end = ends.get(stage.name)
        if end is None:
            lines.append(Verdict(stage.name, "no time left", "runs", False))
        elif end["exit"] or end["said"]:
            lines.append(Verdict(stage.name, end["said"] or f"exit code {end['exit']}", "runs", end["exit"] == 0))
    return lines


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """The figures of the rows and their targets; a missing figure has missed its target."""
    by_bench: dict[str, list[Row]] = {}
    for row in rows:
        if "exit" not in row and not row.get("skipped"):
            by_bench.setdefault(row["bench"], []).append(row)
    return [
        *_decoding(by_bench.get("decode", [])),
        *_reading(by_bench.get("read", [])),
        *_launches(by_bench.get("launches", [])),
        *_training(by_bench.get("ops", [])),
    ]


def _decoding(rows: list[Row]) -> list[Verdict]:
    steps = {(row["context"], row["method"]): row["median_s"] * 1000 for row in rows}
    lines = [
        Verdict(f"decode, {context:,} tokens: {method}", f"{milliseconds:.3f} ms", "", None)
        for (context, method), milliseconds in steps.items()
    ]
    memory = {context: steps.get((context, "memory")) for context in (SHORT, MIDDLE, LONG)}
    without = steps.get((MIDDLE, "no memory"))
    lines.append(_at_most(f"decode, {MIDDLE:,} tokens: memory against none", memory[MIDDLE], without, STEP))
    lines.append(_at_most(f"decode: {LONG:,} tokens against {SHORT:,}", memory[LONG], memory[SHORT], GROWTH))
    bounds = [row["times_roofline"] for row in rows if row["method"] == "memory"]
    lines.append(_at_most("decode: memory against the roofline", max(bounds, default=None), 1.0, ROOFLINE))
    return lines


def _reading(rows: list[Row]) -> list[Verdict]:
    speeds = {(row["context"], row["method"]): row["tokens_per_s"] for row in rows}
    lines = [
        Verdict(f"prefill, {context:,} tokens: {method}", f"{speed:,.0f} tokens/s", "", None)
        for (context, method), speed in speeds.items()
    ]
    memory, without = (speeds.get((MIDDLE, method)) for method in ("memory", "no memory"))
    lines.append(_at_least(f"prefill, {MIDDLE:,} tokens: memory against none", memory, without, PREFILL))
    for context in (FULL_FROM, MIDDLE):
        memory, full = (speeds.get((context, method)) for method in ("memory", "full"))
        lines.append(_at_least(f"prefill, {context:,} tokens: memory against full attention", memory, full, 1.0))
    return lines


def _launches(rows: list[Row]) -> list[Verdict]:
    return [
        Verdict(
            f"{row['what']} of {row['tokens']:,} tokens behind {row['context']:,}: {row['method']}",
            f"{row['launches']} launches, {row['synchronisations']} synchronisations, {row['host_reads']} host reads",
            "",
            None,
        )
        for row in rows
    ]


def _training(rows: list[Row]) -> list[Verdict]:
    ratios = {(row["pass"], row["head_dim"]): row["ratio"] for row in rows if row["method"] == "fused"}
    lines = [
        Verdict(f"{name}, heads of {dim}: fused against flash", f"{ratio:.3f}", "", None)
        for (name, dim), ratio in ratios.items()
        if (name, dim) != ("forward+backward", 64)
    ]
    wanted = ratios.get(("forward+backward", 64))
    return [*lines, _at_most("forward+backward, heads of 64: fused against flash", wanted, 1.0, TRAINING)]


def _at_most(what: str, figure: float | None, of: float | None, target: float) -> Verdict:
    if figure is None or of is None:
        return Verdict(what, "missing", f"<= {target}", False)
    return Verdict(what, f"{figure / of:.3f}", f"<= {target}", figure / of <= target)


def _at_least(what: str, figure: float | None, of: float | None, target: float) -> Verdict:
    if figure is None or of is None:
        return Verdict(what, "missing", f">= {target}", False)
    return Verdict(what, f"{figure / of:.3f}", f">= {target}", figure / of >= target)


def table(verdicts: list[Verdict]) -> str:
    """Columns: what, figure, target, verdict."""
    words = {True: "PASS", False: "FAIL", None: ""}
    lines = [("what", "figure", "target", "")] + [(*verdict[:3], words[verdict.met]) for verdict in verdicts]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in lines
    )
