import re
from pathlib import Path

import pytest

from landmark.data.recall import RecallTask
from landmark.training.options import TrainOptions
from landmark.training.recipe import Recipe, read_recipe, recipe_of
from landmark.training.stages import Stage

STAGE = "[[stage]]\nsteps = 4\nwindow_positions = 48\nbatch_size = 3\n"


def read(tmp_path, text: str) -> Recipe:
    (tmp_path / "r.toml").write_text(text)
    return read_recipe(tmp_path / "r.toml")


def test_a_recipe_says_what_its_file_says(tmp_path):
    recipe = read(
        tmp_path,
        f"learning_rate = 1\nbetas = [0.8, 0.99]\nwarmup_steps = 3\n{STAGE}gates = false\n"
        f"{STAGE}recall_fraction = 0.25\nkeys = [2, 3]\nanswer_weight = 7\n",
    )
    assert recipe.stages == (
        Stage(4, 48, 3, gates=False),
        Stage(4, 48, 3, recall_fraction=0.25, recall=RecallTask(keys=(2, 3), answer_weight=7.0)),
    )
    assert (recipe.learning_rate, recipe.betas, recipe.steps) == (1.0, (0.8, 0.99), 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        ("learning_rat = 1\n" + STAGE, "unknown setting 'learning_rat'; known are learning_rate"),
        (STAGE + "key = [1, 2]", "unknown setting 'key'"),
        ("[[stage]]\nsteps = 4", "lacks window_positions, batch_size"),
        (STAGE + "gates = 1", "gates must be bool, not 1"),
        (STAGE + "keys = [1]", "keys must be a list of two int"),
        (STAGE + "keys = [3, 1]", "low <= high"),
        (STAGE + "recall_fraction = 2", "from 0 to 1"),
        ("learning_rate = 'high'\n" + STAGE, "learning_rate must be float"),
        ("learning_rate = nan\n" + STAGE, "learning_rate must be float and finite, not nan"),
        ("betas = [0.9, inf]\n" + STAGE, "betas must be float and finite, not inf"),
        ("learning_rate = 0\nwarmup_steps = 0\n" + STAGE, "learning_rate must be above 0"),
        ("micro_batches = 0\n" + STAGE, "micro_batches"),
        ("warmup_steps = 4\n" + STAGE, "warmup_steps must be from 0 to 3"),
        ("steps 4", "Expected"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"r\.toml: .*{re.escape(message)}"):
        read(tmp_path, text)


def test_options_make_one_stage():
    base = {"texts": ("a.txt",), "out": Path("out")}
    recipe = recipe_of(TrainOptions(**base, steps=50, batch_size=2, learning_rate=0.5, micro_batches=3))
    assert recipe == Recipe((Stage(50, 512, 2),), learning_rate=0.5, warmup_steps=5, micro_batches=3)
    assert recipe_of(TrainOptions(**base)).steps == 1000
    with pytest.raises(ValueError, match="decides about --steps, --learning-rate"):
        recipe_of(TrainOptions(**base, recipe="r.toml", steps=5, learning_rate=0.1))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml does not exist"):
        read_recipe(tmp_path / "none.toml")


def test_settings_of_earlier_releases_keep_their_meaning(tmp_path):
    (tmp_path / "r.toml").write_text(f"warmup_steps = 0\n{STAGE}recall_fraction = 0.5\nspoken = 0.25\n")
    assert read_recipe(tmp_path / "r.toml").stages[0].recall == RecallTask(chat=0.25)


def test_the_option_packs_the_one_stage_and_a_recipe_each_of_its_own(tmp_path):
    base = {"texts": ("a.txt",), "out": Path("out")}
    assert recipe_of(TrainOptions(**base, packing=True)).stages[0].packing
    assert not recipe_of(TrainOptions(**base)).stages[0].packing
    stage = "[[stage]]\nsteps = 4\nwindow_positions = 48\nbatch_size = 3\n"
    (tmp_path / "r.toml").write_text(f"warmup_steps = 0\n{stage}{stage}packing = true\n")
    assert [one.packing for one in read_recipe(tmp_path / "r.toml").stages] == [False, True]
    with pytest.raises(ValueError, match="decides about --packing"):
        recipe_of(TrainOptions(**base, recipe=tmp_path / "r.toml", packing=True))
