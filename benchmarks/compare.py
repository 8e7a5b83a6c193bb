"""Methods for one task, run by turns: a row of figures for each, or the reason why it has none."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.machine import Machine, by_turns, median_ratio, peak_extra_bytes, spread
from benchmarks.roofline import Work

Row = dict[str, Any]

# Errors that mean "not possible here". Compilers and PyTorch's kernels raise RuntimeError for it; our own code raises
# ValueError, and its other errors are defects.
OWN_REFUSALS = (ValueError, torch.OutOfMemoryError)
FOREIGN_REFUSALS = (ValueError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Method:
    """One way to do the task.

    `call` does it; None if it cannot be done, for the reason `missing`. `work` and `kept_bytes` (keys and
    values held from call to call) are asked after the last call.
    """

    name: str
    call: Callable[[], object] | None = None
    missing: str | None = None
    work: Callable[[], Work] = field(default=lambda: Work(0, 0))
    kept_bytes: Callable[[], int] = field(default=lambda: 0)
    refusals: tuple[type[Exception], ...] = OWN_REFUSALS


@dataclass(frozen=True)
class Task:
    """What the methods of one comparison do: `what` describes it in the rows.

    A call does it `units` times; times and work are of one unit, which handles `tokens` ordinary tokens (0: not
    counted in tokens).
    """

    what: Row
    baseline: str
    units: int = 1
    tokens: int = 0


def compare(
    machine: Machine, task: Task, methods: Sequence[Method], rounds: int, progress: Callable[[int], object]
) -> list[Row]:
    """One row for each method, in their order; `progress(1)` is called after the warm-up and after each round."""
    able, reasons = {}, {}
    for method in methods:
        reason = _warm_up(method)
        if reason is None:
            able[method.name] = method
        reasons[method.name] = reason
    progress(1)
    calls = {name: method.call for name, method in able.items() if method.call is not None}
    taken = by_turns(calls, rounds, machine.device, progress)
    times = {name: [seconds / task.units for seconds in own] for name, own in taken.items()}
    rows = []
    for method in methods:
        own = times.get(method.name)
        row = _row(machine, task, method.name)
        if own is None:
            row["skipped"] = reasons[method.name]
        else:
            row |= _figures(machine, task, method, own, times.get(task.baseline))
        rows.append(row)
    return rows


def skipped(machine: Machine, task: Task, names: Sequence[str], reason: str) -> list[Row]:
    """Rows of methods that were not tried."""
    return [_row(machine, task, name) | {"skipped": reason} for name in names]


def _warm_up(method: Method) -> str | None:
    """Why the method cannot run, None if it did."""
    if method.call is None:
        assert method.missing is not None
        return method.missing
    try:
        method.call()
    except method.refusals as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _row(machine: Machine, task: Task, method: str) -> Row:
    where = {
        "device": machine.device.type,
        "machine": machine.name,
        "threads": machine.threads,
        "dtype": str(machine.dtype).removeprefix("torch."),
    }
    names = [f"{name}_s" for name in ("median", "lower_quartile", "upper_quartile", "minimum", "maximum")]
    names += ["ratio", "tokens_per_s", "peak_extra_bytes", "kept_bytes", "flops", "bytes"]
    names += ["compute_bound_s", "memory_bound_s", "times_roofline"]
    measured = dict.fromkeys(["rounds", *names])
    speeds = {"flops_per_s": machine.flops_per_s, "bytes_per_s": machine.bytes_per_s}
    return task.what | where | {"method": method, "baseline": task.baseline} | measured | speeds | {"skipped": None}


def _figures(machine: Machine, task: Task, method: Method, own: list[float], baseline: list[float] | None) -> Row:
    assert method.call is not None
    seen = spread(own)
    peak = peak_extra_bytes(method.call, machine.device)
    work = method.work()
    compute, memory = work.flops / machine.flops_per_s, work.bytes / machine.bytes_per_s
    return {
        "rounds": len(own),
        **{f"{name}_s": value for name, value in seen._asdict().items()},
        "ratio": None if baseline is None else median_ratio(own, baseline),
        "tokens_per_s": task.tokens / seen.median if task.tokens else None,
        "peak_extra_bytes": peak,
        "kept_bytes": method.kept_bytes(),
        **asdict(work),
        "compute_bound_s": compute,
        "memory_bound_s": memory,
        "times_roofline": seen.median / max(compute, memory),
    }
