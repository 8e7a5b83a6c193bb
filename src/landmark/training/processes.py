"""Whether the processes of a training can work together as its plan says, told before any work starts."""

import atexit
import time
from pathlib import Path

import torch.distributed

from landmark.hf.sequence_parallel import check_heads
from landmark.training.models import read_config
from landmark.training.plan import Plan


def check_processes(plan: Plan, processes: int) -> None:
    """Raises ValueError, naming the numbers, unless as many processes can train as `plan` says."""
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


# The end of the processes of a training: none is taken apart while a thread of it still handles a message.


# What gloo calls the threads that carry out what processes exchange.
MESSENGERS = "pt_gloo_runloop"
PATIENCE = 30.0  # seconds


def leave_group_at_exit() -> None:
    """Have this process leave its group in order before the interpreter ends.

    A thread of gloo lets go of the tensors of an exchange only after it has told that the exchange is done. If Python
    has ended by then, the thread cannot take its lock and aborts the process ("terminate called without an active
    exception"), whose work was done and saved.
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def stay_in_group_at_exit() -> None:
    """Have this process end as it is: leaving would wait for processes that wait for it amid an exchange."""
    atexit.unregister(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        # This ends the threads only where nothing else holds the group, and caches of sharded tensors do.
        torch.distributed.destroy_process_group()
        wait_for_messengers()


def wait_for_messengers() -> None:
    """Return when no thread that carries messages has anything left to do, as Linux tells; elsewhere at once."""
    deadline, quiet = time.monotonic() + PATIENCE, 0
    while quiet < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # releases Python's lock, which a thread may be waiting for asleep
        quiet = quiet + 1 if all(state == "S" for state in _messenger_states()) else 0


def _messenger_states() -> list[str]:
    """`R` for running or ready to run, `S` for asleep, and rarer ones."""
    states = []
    for file in Path("/proc/self/task").glob("*/stat"):
        try:
            name, _, rest = file.read_text().partition("(")[2].rpartition(")")
        except OSError:  # the thread has just ended
            continue
        if name == MESSENGERS:
            states.append(rest.split()[0])
    return states
