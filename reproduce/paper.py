"""The paper's experiments at a small scale, from training to tables: the command `paper`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from landmark.limits import OutFolder, Threads
from reproduce.tables.names import TABLES


@dataclass(frozen=True, kw_only=True)
class PaperOptions:
    """Train and measure everything the paper compares, at a small scale, and write OUT/results.md with plots.

    The whole takes some hours of two CPU cores, the main comparisons first; the report is rewritten after each
    experiment. Run the same command again to resume: measurements in OUT/results.jsonl are kept, also without the
    models that they were taken from.
    """

    out: Annotated[Path, OutFolder()]
    """Folder for trainings, measurements (results.jsonl), tables (results.md) and plots."""
    data: Path | None = None
    """Folder with books/ and math/, each with train/, validation/ and test/ of text files. Optional with --quick, which
    then uses parts of the book in the package for both."""
    quick: bool = False
    """Fill every table in minutes with toy step counts, as a dry run; the figures mean nothing."""
    size: Literal["small", "medium"] = "small"
    """Size of the models: small, 0.9 million parameters and three seeds, also for a CPU; or medium, 32 million and one
    seed, for a GPU."""
    threads: Threads = None
    """Threads to compute with. Default: one for each core."""
    tables: str | None = None
    """Measure for these tables only, separated by commas: language_modeling, controls, selection, retrieve, block_size,
    miss_gate, positions, block_dropout, training_memory, passkey, conversion, throughput. Default: all."""
    tables_only: bool = False
    """Only write the tables and plots of the measurements in OUT/results.jsonl."""


def run(options: PaperOptions) -> int:
    """Trains and measures what is missing, and writes the report."""
    if options.data is None and not (options.quick or options.tables_only):
        raise ValueError("name the texts with --data DIR (see --help), or try it without them with --quick")
    if options.quick and options.size != "small":
        raise ValueError(f"--quick passes through everything with small models: leave --size {options.size} out")
    wanted = _tables(options)
    from reproduce.tables.render import check_plots, render
    from reproduce.tables.results import Results

    check_plots()
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "results.jsonl")
    if not options.tables_only:
        from reproduce.runs import setup
        from reproduce.runs.run import run_all

        scale = setup.QUICK if options.quick else setup.SCALES[options.size]
        corpora = setup.corpora(options.data, options.out)
        whole = setup.Setup(options.out, corpora, scale, options.threads)
        run_all(whole, results, lambda: render(results, options.out), wanted)
    render(results, options.out)
    print(f"the report is in {options.out / 'results.md'}", file=sys.stderr)
    return 0


def _tables(options: PaperOptions) -> tuple[str, ...]:
    """The tables to measure for; raises ValueError for one that there is not, and for none with --tables-only."""
    if options.tables is None:
        return TABLES
    if options.tables_only:
        raise ValueError("--tables-only measures nothing: leave --tables out")
    tables = tuple(name.strip() for name in options.tables.split(","))
    for name in tables:
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}: choose of {', '.join(TABLES)}")
    return tables
