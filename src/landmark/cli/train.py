"""`landmark train`: train from scratch, teach landmarks to an existing model, or train a recipe of the package."""

import sys
from pathlib import Path

from landmark.training.options import TrainOptions


def run(options: TrainOptions) -> int:
    """Train, and say where the model is."""
    from landmark.data.text import STDIN

    if STDIN in (*options.texts, *options.validation):
        raise ValueError("a training reads its texts again when it goes on: name files, not - for standard input")
    from landmark.recipes import catalogue

    named = options.recipe is not None and not Path(options.recipe).is_file()
    entry = catalogue.find(str(options.recipe)) if named else None

    from landmark.training.plan import plan_of  # loads torch
    from landmark.training.run import carry_out  # loads transformers

    plan = plan_of(options) if entry is None else catalogue.plan_of(entry, options)
    final = carry_out(plan)
    print(f"the trained model is in {final}", file=sys.stderr)
    return 0
