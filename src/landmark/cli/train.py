"""`landmark train`: train from scratch, or teach landmarks to an existing model."""

import sys

from landmark.training.options import TrainOptions


def run(options: TrainOptions) -> int:
    """Train, and say where the model is."""
    from landmark.training.run import train  # loads torch and transformers

    final = train(options)
    print(f"the trained model is in {final}", file=sys.stderr)
    return 0
