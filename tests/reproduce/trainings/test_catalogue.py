from dataclasses import replace
from pathlib import Path

import pytest

from reproduce.trainings.catalogue import TRAININGS, find, plan_of
from reproduce.trainings.options import NamedTraining
from reproduce.trainings.paper import paper_pg19
from reproduce.trainings.small import small_books

OUT = Path("runs/one")


def planned(name: str, **options: object):
    return plan_of(find(name), NamedTraining(out=OUT, name=name, **options))


@pytest.mark.parametrize("entry", TRAININGS, ids=lambda entry: entry.name)
def test_every_training_makes_a_plan(entry, data):
    needs_texts = not entry.name.startswith("paper")
    plan = planned(entry.name, seed=5, **({"data": data} if needs_texts else {}))
    assert (plan.out, plan.seed) == (OUT, 5)


def test_options_of_the_recipe_and_those_that_change_no_weight_are_taken(data):
    plan = planned("small_books", data=data, attention="full", steps=7, threads=2, log_every=10, tokens=Path("t"))
    expected = small_books(OUT, data, "full", steps=7)
    assert plan == replace(expected, threads=2, log_every=10, tokens=Path("t"))
    assert planned("paper_pg19", precision="float16", gradient_checkpointing=True) == replace(
        paper_pg19(OUT), precision="float16", gradient_checkpointing=True
    )


def test_given_where_the_package_has_another_default_is_given(data):
    assert planned("small_books", data=data).eval_every == 400
    assert planned("small_books", data=data, eval_every=500).eval_every == 500


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smollm2_135m", {"attention": "full", "steps": 5}, "does not take --attention, --steps: leave that"),
        ("small_books", {"data": Path(), "model": "a.gguf"}, "small_books does not take --model"),
        ("shipped_model", {"attention": "full"}, "it takes --out, --data, --seed"),
        ("paper_pg19", {"data": Path()}, "paper_pg19 does not take --data"),
        ("small_math", {}, "the training small_math needs --data"),
    ],
)
def test_other_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        planned(name, **options)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no training 'smal_book'; did you mean small_books\?"):
        find("smal_book")
    with pytest.raises(ValueError, match=r"trainings of the project are small_books, small_math, paper_pg19"):
        find("xyz")
