"""`python -m reproduce`: the paper's experiments at a small scale, from training to tables."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from landmark.limits import OutFolder, Threads


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Train and measure everything the paper compares, at a small scale, and write DIR/results.md with plots.

    The whole takes some hours of two CPU cores, the headline first; the tables are written anew whenever an experiment
    is complete. Run the same command again to go on where it stopped: measurements in DIR/results.jsonl are kept, also
    where the models they were taken from are gone.
    """

    out: Annotated[Path, OutFolder()]
    """Folder of trainings, measurements (results.jsonl), tables (results.md) and plots."""
    data: Path | None = None
    """Folder with books/ and math/, each with train/, validation/ and test/ of text files. Only --quick goes without:
    then parts of the book in the package stand in for both."""
    quick: bool = False
    """Pass through every table in minutes with toy step counts, to see that all works; the figures mean nothing."""
    size: Literal["small", "medium"] = "small"
    """Of the models: 0.9 million weights and three seeds, for a CPU too, or 32 million and one seed, for a GPU."""
    threads: Threads = None
    """Threads to compute with. Default: one for each core."""
    tables_only: bool = False
    """Write the tables and plots of the measurements that are there; train and measure nothing."""


def run(options: ReportOptions) -> int:
    """Carry out what is missing, and write the report."""
    if options.data is None and not (options.quick or options.tables_only):
        raise ValueError("name the texts with --data DIR (see --help), or try it without them with --quick")
    if options.quick and options.size != "small":
        raise ValueError(f"--quick passes through everything with small models: leave --size {options.size} out")
    from reproduce.tables.render import check_plots, render
    from reproduce.tables.results import Results

    check_plots()
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "results.jsonl")
    if not options.tables_only:
        from reproduce.runs import setup
        from reproduce.runs.run import run_all

        scale = setup.QUICK if options.quick else setup.SCALES[options.size]
        all_of_it = setup.Setup(options.out, setup.corpora(options.data, options.out), scale, options.threads)
        run_all(all_of_it, results, lambda: render(results, options.out))
    render(results, options.out)
    print(f"the report is in {options.out / 'results.md'}", file=sys.stderr)
    return 0
