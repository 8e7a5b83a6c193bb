import pytest

from landmark.training.run_lock import check_claim, claim, only_one

SETTINGS = {
    "recipe": {"stages": [{"steps": 4, "attention": "landmark"}, {"steps": 2, "attention": "landmark"}], "clip": 1.0},
    "config": {"model_type": "llama", "hidden_size": 32},
    "block_size": 7,
    "texts": ["a.txt"],
    "tokens_sha256": "0123",
}


@pytest.fixture
def out(tmp_path):
    claim(tmp_path / "run", SETTINGS)
    (tmp_path / "run" / "checkpoint-4").mkdir()
    return tmp_path / "run"


def test_the_same_settings_go_on(out):
    claim(out, SETTINGS)
    check_claim(out, SETTINGS)
    check_claim(out, {"block_size": 7})  # what is not known yet is not compared
    check_claim(out.with_name("empty"), SETTINGS)


def test_a_setting_that_came_later_and_is_not_given_makes_no_difference(out):
    check_claim(out, SETTINGS | {"vocabulary": None})
    with pytest.raises(ValueError, match=r"vocabulary was None, is 9\)"):
        check_claim(out, SETTINGS | {"vocabulary": 9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"recipe": {"stages": [{"steps": 4, "attention": "full"}, SETTINGS["recipe"]["stages"][1]], "clip": 1.0}},
            "(recipe.stages.0.attention was 'landmark', is 'full')",
        ),
        (
            {"recipe": {"stages": SETTINGS["recipe"]["stages"][:1], "clip": 1.0}},
            "(recipe.stages.1.steps was 2, is None; recipe.stages.1.attention was 'landmark', is None)",
        ),
        ({"config": {"model_type": "llama", "hidden_size": 64}}, "(config.hidden_size was 32, is 64)"),
        ({"block_size": 9}, "(block_size was 7, is 9)"),
        ({"tokens_sha256": "4567"}, "(tokens_sha256 was '0123', is '4567')"),
        (
            {"texts": ["b", "c", "d", "e", "f"]},
            "(texts.0 was 'a.txt', is 'b'; texts.1 was None, is 'c'; texts.2 was None, is 'd'; 2 more)",
        ),
    ],
)
def test_what_differs_is_named(out, change, message):
    for ask in (check_claim, claim):
        with pytest.raises(ValueError, match="holds a training with other settings") as error:
            ask(out, SETTINGS | change)
        assert message in str(error.value)


def test_a_training_without_a_checkpoint_is_in_nobodys_way(tmp_path):
    claim(tmp_path, SETTINGS)
    with only_one(tmp_path), pytest.raises(ValueError, match="another process"):
        claim(tmp_path, SETTINGS | {"block_size": 9})
    claim(tmp_path, SETTINGS | {"block_size": 9})
    (tmp_path / "model.partial").mkdir()
    with pytest.raises(ValueError, match=r"block_size was 9, is 7"):
        claim(tmp_path, SETTINGS)


def test_a_training_is_carried_out_by_one_process_at_a_time(tmp_path):
    claim(tmp_path, SETTINGS)
    with only_one(tmp_path), pytest.raises(ValueError, match="another process"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass
