"""`python -m reproduce train NAME` and `trainings`: the trainings of the project, by name."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from landmark.training.options import TrainOptions
from reproduce.trainings.catalogue import TRAININGS, find, plan_of


@dataclass(frozen=True, kw_only=True)
class NamedTraining(TrainOptions):
    """Train one model of the project; `python -m reproduce trainings` lists them.

    A training fixes almost every option of `landmark train`: it takes the few that it has parameters for, and those
    that change no parameter of the model. Run the same command again to resume an interrupted training.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Name of the training."""

    data: Path | None = None
    """Folder with the texts of the training, if it needs any: books/ or math/, each with train/, validation/, test/."""

    attention: str | None = None
    """Attention of the model, if the training can have several: landmark (the default), full, recurrent, ..."""


@dataclass(frozen=True)
class ListOptions:
    """List the trainings of the project, each with its scale."""


def run(options: NamedTraining) -> int:
    """Trains the model and prints its folder."""
    entry = find(options.name)
    from landmark.training.run import train  # loads transformers

    final = train(plan_of(entry, options))
    print(f"the trained model is in {final}", file=sys.stderr)
    return 0


def run_list(options: ListOptions) -> int:
    """Prints the list."""
    width = max(len(entry.name) for entry in TRAININGS)
    for entry in TRAININGS:
        print(f"{entry.name:{width}}  {entry.summary}\n{'':{width}}  {entry.scale}")
    print("\npython -m reproduce train NAME --out OUT [--data DIR] [--attention ...] trains one.")
    return 0
