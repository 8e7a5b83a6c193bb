"""What `python -m reproduce train` takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from landmark.limits import SEEDS, MaybeFromOne, OutFile, OutFolder, Range, Threads
from landmark.training.options import Parallel, Precision


@dataclass(frozen=True, kw_only=True)
class NamedTraining:
    """Train one model of the project by its name; `python -m reproduce trainings` lists them.

    Run the same command again to resume an interrupted training exactly. Example: python -m reproduce train small_books
    --data DATA --out runs/small_books
    """

    GROUPS: ClassVar = {
        "training": ("data", "model", "attention", "block_size", "steps"),
        "device": ("precision", "gradient_checkpointing", "parallel", "threads"),
        "logging": ("log_every", "eval_every", "eval_windows", "save_every", "json"),
    }

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Name of the training."""

    out: Annotated[Path, OutFolder()]
    """Folder for checkpoints and, at the end, the trained model (OUT/model)."""

    seed: Annotated[int | None, SEEDS] = None
    """Seed of the initial parameters and of the windows (default 0)."""

    tokens: Annotated[Path | None, OutFolder()] = None
    """Folder for the tokenized text. Default: that of the training."""

    data: Path | None = None
    """Folder with the texts, for all trainings but paper_pg19 and paper_arxiv, which download theirs: books/ or math/,
    each with train/, validation/ and test/."""

    model: str | None = None
    """Model to convert, for smollm2_135m: a folder, a GGUF file or a name on the Hugging Face hub."""

    attention: str | None = None
    """Attention, for the trainings of the paper's comparisons: landmark (the default), full, recurrent, ..."""

    block_size: MaybeFromOne = None
    """Ordinary tokens per block, for the same trainings (default 50)."""

    steps: Annotated[int | None, Range(1, 10**8)] = None
    """Optimizer steps, for the same trainings. Default: as published."""

    precision: Precision = None
    """Dtype of the forward pass: auto is bfloat16 or float16 on GPUs that have it, else float32. Default: that of the
    training."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""

    parallel: Parallel = None
    """Parallelism of the processes of torchrun: docs/scaling.md."""

    threads: Threads = None
    """Threads to compute with. Default: one for each core."""

    log_every: MaybeFromOne = None
    """Steps between log lines."""

    eval_every: MaybeFromOne = None
    """Steps between measurements on the validation texts."""

    eval_windows: MaybeFromOne = None
    """Windows of validation text in a measurement."""

    save_every: MaybeFromOne = None
    """Steps between checkpoints; the newest two are kept."""

    json: Annotated[str | None, OutFile(or_stdout=True)] = None
    """Write each log event as a line of JSON to this file, or to standard output if it is -."""
