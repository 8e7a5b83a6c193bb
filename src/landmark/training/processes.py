"""Whether the processes of a training can work together as its plan says, told before any work starts."""

from landmark.hf.sequence import check_heads
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
