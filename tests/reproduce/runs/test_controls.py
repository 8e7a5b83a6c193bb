"""The controls, from training to measurement, in two steps of training each."""

from dataclasses import replace

import pytest

from reproduce.runs.catalogue import Experiment, experiments
from reproduce.runs.perplexities import TestWindows
from reproduce.runs.run import run_experiment
from reproduce.runs.setup import QUICK, Setup, corpora
from reproduce.tables import names
from reproduce.tables.results import Results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    out = tmp_path_factory.mktemp("out")
    setup = Setup(out, corpora(None, out), replace(QUICK, steps=2), threads=1)
    results, windows, measured = Results(out / "results.jsonl"), TestWindows(setup), {}
    for experiment in experiments(setup.scale):
        rows = tuple(row for row in experiment.of_tables([names.CONTROLS]).rows if "targets" in row.settings)
        if rows and experiment.training.changes != {"window": 128}:
            run_experiment(Experiment(experiment.training, rows), setup, results, windows, measured)
    return results


def test_every_method_is_scored_on_both_parts_of_a_window(results):
    methods = [(names.LANDMARK, 0), (names.LANDMARK, 2), (names.FULL, None), (names.PLAIN_TOKENS, None)]
    for method, retrieve in methods:
        for targets in (names.FIRST_BLOCK, names.BEHIND_IT):
            lines = results.find(table=names.CONTROLS, method=method, retrieve=retrieve, targets=targets)
            assert [line.get("window") for line in lines] == ([512, 64] if method == names.FULL else [None])


def test_landmark_attention_reads_the_first_block_without_opening_any(results):
    def nll(targets: str) -> list[list[float]]:
        lines = results.find(method=names.LANDMARK, targets=targets)
        return [line["nll"] for line in sorted(lines, key=lambda line: line["retrieve"])]

    closed, opened = nll(names.FIRST_BLOCK)
    assert closed == pytest.approx(opened, abs=2e-6)  # rounded to 6 digits
    closed, opened = nll(names.BEHIND_IT)
    assert closed != pytest.approx(opened, abs=2e-6)


def test_plain_tokens_are_another_model_than_landmarks(results):
    (plain,) = results.find(method=names.PLAIN_TOKENS, targets=names.BEHIND_IT)
    assert plain["training"] == "books-landmark-gatesFalse-seed0"
    assert plain["attended"] == 256.5
