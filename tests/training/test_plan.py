"""The settings that identify a training."""

from landmark.training.plan import plan_of


def test_trainings_without_packing_or_distractors_are_known_by_what_they_were_before_these(options):
    stage = plan_of(options()).identity()["recipe"]["stages"][0]
    assert not {"packing", "distractors"} & stage.keys()
    packed = options(recipe=None, steps=1, packing=True)
    assert plan_of(packed).identity()["recipe"]["stages"][0]["packing"]
