"""Processes of a distributed training: checks before any work starts, and an orderly exit."""

import atexit
import time
from pathlib import Path

import torch.distributed

from landmark.hf.sequence_parallel import check_heads
from landmark.training.models import read_config
from landmark.training.plan import Plan

GLOO_THREADS = "pt_gloo_runloop"  # the name that gloo gives its communication threads
TIMEOUT = 30.0  # seconds


def check_processes(plan: Plan, processes: int) -> None:
    """Raises ValueError unless so many processes can train together by `plan`."""
    if processes == 1:
        if plan.parallel is not None:
            raise ValueError(
                f"--parallel {plan.parallel} is for several processes and this is a single one: leave it out, or start "
                "with torchrun --nproc-per-node 2 -m landmark.cli.main train"
            )
    elif plan.parallel == "sequence":
        _check_slices(plan, processes)
    elif plan.recipe.micro_batches % processes:
        raise ValueError(
            f"{processes} processes cannot share {plan.recipe.micro_batches} micro-batches of a step evenly: "
            f"give --micro-batches (or the recipe) a multiple of {processes}, or start another number of processes"
        )


def _check_slices(plan: Plan, processes: int) -> None:
    for stage in plan.recipe.stages:
        if stage.attention != "landmark":
            raise ValueError(
                f"--parallel sequence cuts windows, and a stage with attention {stage.attention!r} reads them in other "
                "pieces: use --parallel fsdp or ddp"
            )
        if stage.block_dropout:
            raise ValueError(
                f"--parallel sequence shares heads out, and block_dropout {stage.block_dropout} is drawn for all of "
                "them together: use --parallel fsdp or ddp"
            )
        if stage.window_positions < processes:
            raise ValueError(f"{processes} processes cannot share a window of {stage.window_positions} positions")
    check_heads(read_config(plan), processes)


# Exit: the interpreter must not end while a thread of gloo still handles a message.


def leave_group_at_exit() -> None:
    """Makes this process destroy its process group before the interpreter exits.

    A thread of gloo releases the tensors of a collective only after it has reported the collective as done. If Python
    has exited by then, the thread cannot take the GIL and aborts the process ("terminate called without an active
    exception"), although its work was done and saved.
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def stay_in_group_at_exit() -> None:
    """Makes this process exit at once: leaving the group would wait for processes that wait for it in a collective."""
    atexit.unregister(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        # This ends the threads only if nothing else holds the group, and caches of sharded tensors do.
        torch.distributed.destroy_process_group()
        wait_for_gloo()


def wait_for_gloo() -> None:
    """Returns when all threads of gloo are asleep, as /proc shows them; at once on other systems than Linux."""
    deadline, quiet = time.monotonic() + TIMEOUT, 0
    while quiet < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # releases the GIL, for which a thread may be waiting
        quiet = quiet + 1 if all(state == "S" for state in _gloo_thread_states()) else 0


def _gloo_thread_states() -> list[str]:
    """`R` for running or runnable, `S` for asleep, and rarer ones."""
    states = []
    for file in Path("/proc/self/task").glob("*/stat"):
        try:
            name, _, rest = file.read_text().partition("(")[2].rpartition(")")
        except OSError:  # the thread has just exited
            continue
        if name == GLOO_THREADS:
            states.append(rest.split()[0])
    return states
