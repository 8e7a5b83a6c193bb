"""The settings that identify a training."""

from dataclasses import replace

from landmark.training.plan import plan_of


def test_trainings_without_packing_or_distractors_are_known_by_what_they_were_before_these(options):
    stage = plan_of(options()).identity()["recipe"]["stages"][0]
    assert not {"packing", "distractors"} & stage.keys()
    packed = options(recipe=None, steps=1, packing=True)
    assert plan_of(packed).identity()["recipe"]["stages"][0]["packing"]


def test_paths_may_be_text(options, tmp_path):
    given = options(tokens=tmp_path / "tokens")
    as_text = {name: str(value) for name in ("out", "config", "recipe", "tokens") if (value := getattr(given, name))}
    assert plan_of(replace(given, **as_text)) == plan_of(given)
