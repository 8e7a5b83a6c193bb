"""`python -m reproduce train NAME` and `trainings`: the trainings of the project, by name."""

import sys
from dataclasses import dataclass

from reproduce.trainings.catalogue import TRAININGS, find, plan_of
from reproduce.trainings.options import NamedTraining


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
