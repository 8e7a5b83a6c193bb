"""Mistakes that show before any work is done, or before a model is built."""

from dataclasses import replace

import pytest

from landmark.training import run as run_module
from landmark.training.models import tokenizer_of
from landmark.training.plan import plan_of
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
    (tmp_path / "run" / "checkpoint-4").mkdir()
    monkeypatch.setattr(run_module, "tokenizer_of", None)
    other = tmp_path / "other.toml"
    other.write_text((material / "recipe.toml").read_text().replace("steps = 4", "steps = 5", 1))
    with pytest.raises(ValueError, match=r"recipe\.stages\.0\.steps was 4, is 5"):
        train(options(recipe=str(other)))
    with pytest.raises(ValueError, match="block_size was 7, is 9"):
        train(options(block_size=9))


def works(options, monkeypatch) -> bool:
    """Whether the training gets as far as to its model."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_model", None)
        with pytest.raises(TypeError):
            train(options)
    return True


@pytest.mark.parametrize(
    "wrong", ["texts", "more texts", "validation", "short", "encoding", "empty", "recipe", "model"]
)
def test_a_command_that_failed_does_not_block_the_corrected_one(options, material, tmp_path, monkeypatch, wrong):
    text = str(material / "text.txt")
    for name, data in (("short", b"the whale"), ("encoding", b"\xff\xfe"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "recipe.toml").write_text((material / "recipe.toml").read_text().replace("[1, 2]", "[99, 99]"))
    mistake, right = {
        "texts": ({"texts": ("typo.txt",)}, {}),
        "more texts": ({"texts": (text, "typo.txt")}, {"texts": (text, str(material / "held_out.txt"))}),
        "validation": ({"validation": ("typo.txt",)}, {"validation": (str(material / "held_out.txt"),)}),
        "short": ({"validation": (str(tmp_path / "short"),)}, {"validation": (str(material / "held_out.txt"),)}),
        "encoding": ({"texts": (text, str(tmp_path / "encoding"))}, {"texts": (text,)}),
        "empty": ({"texts": (str(tmp_path / "empty"),)}, {}),
        "recipe": ({"recipe": tmp_path / "recipe.toml"}, {}),
        "model": ({"config": None, "model": str(tmp_path / "typo")}, {}),
    }[wrong]
    with pytest.raises(ValueError, match=r".+"):
        train(options(**mistake))
    assert works(options(**right), monkeypatch)


def test_a_text_that_is_too_short_leaves_neither_tokens_nor_tokenizer(options, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("the whale said 7\n" * 5)
    plan = replace(plan_of(options(tokenizer=str(tmp_path / "new"))), vocabulary=262)
    with pytest.raises(ValueError, match="fewer than a window"):
        run_module.train(replace(plan, texts=(str(tmp_path / "short.txt"),)))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "run" / "tokens").exists()
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_model", None)
        with pytest.raises(TypeError):
            run_module.train(plan)


def test_a_tokenizer_is_trained_where_there_is_none(options, material, tmp_path):
    plan = replace(plan_of(options(tokenizer=str(tmp_path / "new"))), vocabulary=290)
    assert len(tokenizer_of(plan)) == 290
    assert len(tokenizer_of(replace(plan, vocabulary=280))) == 290, "the one that is there serves"


def test_there_must_be_text(options):
    with pytest.raises(ValueError, match="no text to train on: name some with --texts"):
        train(options(texts=()))


def test_windows_without_room_for_a_block_and_its_landmark(options, tmp_path, monkeypatch):
    short = {"recipe": None, "steps": 2, "batch_size": 2, "block_size": 7}
    with pytest.raises(ValueError, match="a window of 7 positions is shorter than a block of 7 tokens"):
        train(options(window_positions=7, **short))
    with pytest.raises(ValueError, match="a window of 63 positions is shorter than a block of 63 tokens"):
        train(options(window_positions=63, **short | {"block_size": None}))
    assert not (tmp_path / "run" / "run.json").exists()
    assert works(options(window_positions=8, **short), monkeypatch)
