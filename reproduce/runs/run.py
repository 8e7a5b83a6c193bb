"""Runs the experiments one after the other, and resumes where an earlier run stopped."""

import sys
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from landmark.evaluation.reading import Reading
from reproduce.runs import conversion, throughput
from reproduce.runs.catalogue import Experiment, experiments
from reproduce.runs.perplexities import Row, SegmentReading, TestWindows, measure
from reproduce.runs.setup import Setup
from reproduce.runs.trainings import load
from reproduce.tables import names
from reproduce.tables.claims import comparisons
from reproduce.tables.measured import window_by_window
from reproduce.tables.results import KEY, Line, Results

# By training, reading, length and targets.
Figures = dict[tuple[str, Reading | SegmentReading, int, tuple[int, int]], dict[str, Any]]


def run_all(
    setup: Setup, results: Results, after_each: Callable[[], None], tables: Collection[str] = names.TABLES
) -> None:
    """Trains and measures what `results` lacks of these tables; `after_each` is called after every experiment."""
    windows = TestWindows(setup)
    measured: Figures = {}
    wanted = [one.of_tables(tables) for one in experiments(setup.scale)]
    for number, experiment in enumerate(wanted, 1):
        if missing_rows(experiment, setup, results):
            print(f"experiment {number} of {len(wanted)}: {experiment.training.name}", file=sys.stderr, flush=True)
            run_experiment(experiment, setup, results, windows, measured)
            add_comparisons(results, setup.fields())
            after_each()
    if names.CONVERSION in tables:
        conversion.learning_curve(setup, results, windows)
    if names.PASSKEY in tables:
        conversion.passkey_retrieval(setup, results)
    after_each()
    if names.THROUGHPUT in tables:
        throughput.measure(setup, results)
        after_each()


def missing_rows(experiment: Experiment, setup: Setup, results: Results) -> list[Row]:
    """The rows of an experiment that are not measured yet."""
    training, steps = experiment.training, setup.scale.steps
    return [row for row in experiment.rows if not results.has(**row.key(training.corpus, training.seed, steps))]


def run_experiment(
    experiment: Experiment, setup: Setup, results: Results, windows: TestWindows, measured: Figures
) -> None:
    """Trains the model, or resumes, and measures each missing row; rows of several tables may share a reading."""
    training = experiment.training
    model, tokenizer = load(training.run(setup))
    cut = windows.of(training.corpus, tokenizer)
    for row in missing_rows(experiment, setup, results):
        key = training.name, row.reading(model.config), row.length, row.targets
        if key not in measured:
            measured[key] = _measure_and_print(row, model, cut)
        line = row.key(training.corpus, training.seed, setup.scale.steps) | measured[key]
        results.add(line | {"training": training.name} | setup.fields())


def _measure_and_print(row: Row, model: PreTrainedModel, windows: np.ndarray) -> dict[str, Any]:
    figures = measure(row, model, windows)
    settings = ", ".join(f"{name} {value}" for name, value in row.settings.items())
    print(
        f"  {row.method}, {row.length} tokens, {settings}: "
        f"perplexity {figures['perplexity']:.3f} ({figures['seconds']} s)",
        file=sys.stderr,
        flush=True,
    )
    return figures


# Paired differences between two rows of one seed, window by window: what the claims rest on.


def add_comparisons(results: Results, circumstances: dict[str, Any]) -> None:
    """Adds the differences that claims rest on, between all measured rows of the same seed and steps."""
    for one, other in comparisons():
        for line in _perplexity_lines(results, one):
            same = {name: line[name] for name in ("seed", "steps")}
            for against in _perplexity_lines(results, other | same):
                found = difference(line, against) | circumstances
                if not results.has(**{name: found.get(name) for name in KEY}):  # other machines round otherwise
                    results.add(found)


def difference(line: Line, against: Line) -> Line:
    """`line` minus `against` in nats a token, below 0 where `line` is better."""
    mean, error, windows = window_by_window(line, against)
    fields = {name: line[name] for name in KEY if line.get(name) is not None}
    changed = {
        f"against_{name}": against.get(name)
        for name in KEY
        if name not in ("method", "table", "seed") and against.get(name) != line.get(name)
    }
    figures = {"difference": mean, "difference_se": error, "samples": windows}
    return fields | {"against": against["method"]} | changed | figures


def _perplexity_lines(results: Results, setting: Line) -> list[Line]:
    return [line for line in results.find(**setting) if "perplexity" in line]
