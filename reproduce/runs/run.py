"""Carrying out the experiments one after the other, resuming where an earlier run stopped."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from landmark.evaluation.reading import Reading
from landmark.evaluation.segments import SegmentReading
from landmark.experiments import lookups, throughput
from landmark.experiments.catalogue import Experiment, experiments
from landmark.experiments.comparisons import add_comparisons
from landmark.experiments.perplexities import Row, TestWindows, measure
from landmark.experiments.setup import Setup
from landmark.experiments.trainings import load
from landmark.report.results import Results

Measured = dict[tuple[str, Reading | SegmentReading, int], dict[str, Any]]  # by training, reading and length


def run_all(setup: Setup, results: Results, after_each: Callable[[], None]) -> None:
    """Trains and measures what `results` does not hold yet; `after_each` is called when an experiment is complete."""
    windows = TestWindows(setup)
    measured: Measured = {}
    wanted = list(experiments(setup.scale))
    for number, experiment in enumerate(wanted, 1):
        if missing_rows(experiment, setup, results):
            print(f"experiment {number} of {len(wanted)}: {experiment.training.name}", file=sys.stderr, flush=True)
            carry_out(experiment, setup, results, windows, measured)
            add_comparisons(results, setup.fields())
            after_each()
    lookups.learning_curve(setup, results, windows)
    lookups.pass_keys(setup, results)
    after_each()
    throughput.measure(setup, results)
    after_each()


def missing_rows(experiment: Experiment, setup: Setup, results: Results) -> list[Row]:
    """The rows of an experiment that have no line yet."""
    training, steps = experiment.training, setup.scale.steps
    return [row for row in experiment.rows if not results.has(**row.key(training.corpus, training.seed, steps))]


def carry_out(experiment: Experiment, setup: Setup, results: Results, windows: TestWindows, measured: Measured) -> None:
    """Trains the model, or goes on, and adds a line for each missing row; a reading may stand in several tables."""
    training = experiment.training
    model, tokenizer = load(training.carry_out(setup))
    cut = windows.of(training.corpus, tokenizer)
    for row in missing_rows(experiment, setup, results):
        key = training.name, row.reading(model.config), row.length
        if key not in measured:
            measured[key] = _told(row, model, cut)
        line = row.key(training.corpus, training.seed, setup.scale.steps) | measured[key]
        results.add(line | {"training": training.name} | setup.fields())


def _told(row: Row, model: Any, windows: np.ndarray) -> dict[str, Any]:
    figures = measure(row, model, windows)
    said = ", ".join(f"{name} {value}" for name, value in row.settings.items())
    print(
        f"  {row.method}, {row.length} tokens, {said}: perplexity {figures['perplexity']:.3f} ({figures['seconds']} s)",
        file=sys.stderr,
        flush=True,
    )
    return figures
