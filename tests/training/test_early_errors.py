"""Mistakes that show before any work is done, or before a model is built."""

import pytest

from landmark.training import run as run_module
from landmark.training.run import train


def test_a_text_shorter_than_a_window_builds_no_model_and_claims_no_folder(options, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load_model", None)
    (tmp_path / "short.txt").write_text("the whale said 7\n" * 5)
    short = (str(tmp_path / "short.txt"),)
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, fewer than a window of 192"):
        train(options(texts=short))
    with pytest.raises(ValueError, match=r"the validation text has \d+ tokens, fewer than a window of 192"):
        train(options(validation=short, out=tmp_path / "other"))
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "other" / "run.json").exists()


def test_other_settings_are_found_before_a_text_is_read(options, material, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_model", None)
        with pytest.raises(TypeError):
            train(options())  # claims the folder
    monkeypatch.setattr(run_module, "load_tokenizer", None)
    other = tmp_path / "other.toml"
    other.write_text((material / "recipe.toml").read_text().replace("steps = 4", "steps = 5", 1))
    with pytest.raises(ValueError, match=r"recipe\.stages\.0\.steps was 4, is 5"):
        train(options(recipe=str(other)))
    with pytest.raises(ValueError, match="block_size was 7, is 9"):
        train(options(block_size=9))


def test_a_tokenizer_is_trained_where_there_is_none(options, material, tmp_path):
    from dataclasses import replace

    from landmark.training.models import load_tokenizer
    from landmark.training.plan import plan_of

    plan = replace(plan_of(options(tokenizer=str(tmp_path / "new"))), vocabulary=290)
    assert len(load_tokenizer(plan)) == 290
    assert len(load_tokenizer(replace(plan, vocabulary=280))) == 290, "the one that is there serves"


def test_text_and_recipe_options_go_together(options):
    with pytest.raises(ValueError, match="no text to train on: name some with --texts, or a recipe"):
        train(options(texts=()))
    with pytest.raises(ValueError, match="--attention: for recipes of the package"):
        train(options(attention="full"))
