"""The catalogue as a whole: every line has a key of its own, and every comparison finds both of its rows."""

from collections import Counter

import pytest

from reproduce.runs.catalogue import BLOCK_SIZES, experiments
from reproduce.runs.setup import FULL, QUICK
from reproduce.runs.trainings import Training
from reproduce.tables.claims import comparisons
from reproduce.tables.results import KEY, matches


def keys(scale):
    return [
        row.key(experiment.training.corpus, experiment.training.seed, scale.steps)
        for experiment in experiments(scale)
        for row in experiment.rows
    ]


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_no_two_rows_of_the_report_have_the_same_key(scale):
    counted = Counter(tuple(key.get(name) for name in KEY) for key in keys(scale))
    assert [key for key, count in counted.items() if count > 1] == []


def test_every_training_has_a_folder_of_its_own():
    named: dict[str, Training] = {}
    for experiment in experiments(FULL):
        training = experiment.training
        assert named.setdefault(training.name, training) == training
    assert named["books-landmark-seed0"].block_size in BLOCK_SIZES  # the headline is one of those compared


def test_headline_comparisons_come_first_and_have_three_seeds():
    trainings = [experiment.training for experiment in experiments(FULL)]
    first = [(training.corpus, training.attention, training.seed) for training in trainings[:15]]
    assert first[:3] == [("books", attention, 0) for attention in ("landmark", "full", "recurrent")]
    assert {seed for corpus, _, seed in first if corpus == "books"} == {0, 1, 2}


@pytest.mark.parametrize("pair", comparisons(), ids=str)
def test_comparisons_find_their_rows(pair):
    for setting in pair:
        assert len([key for key in keys(FULL) if key["seed"] == 0 and matches(key, setting)]) == 1, setting
