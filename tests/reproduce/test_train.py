"""`python -m reproduce train` and `trainings`."""

import json
import sys
from pathlib import Path

import pytest

from landmark.assets import book_path
from reproduce.__main__ import REPRODUCE
from reproduce.trainings.catalogue import TRAININGS


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with books/train, validation and test."""
    folder = tmp_path_factory.mktemp("data")
    text = book_path().read_text(encoding="utf-8")
    for number, part in enumerate(("train", "validation", "test")):
        (folder / "books" / part).mkdir(parents=True)
        (folder / "books" / part / "book.txt").write_text(text[80_000 * number :][:80_000], encoding="utf-8")
    return folder


def refused(capsys, *arguments: str) -> str:
    """The one line that a command line is refused with."""
    assert REPRODUCE.main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_recipe_trains_by_its_name_and_is_known_again(data, tmp_path, capsys):
    out = tmp_path / "runs" / "one"
    short = ["--steps", "2", "--eval-windows", "2", "--threads", "1", "--log-every", "1"]
    command = ["small_books", "--data", str(data), "--out", str(out), *short]
    assert REPRODUCE.main(["train", *command, "--attention", "recurrent", "--seed", "1"]) == 0
    assert "the trained model is in" in capsys.readouterr().err
    recorded = json.loads((out / "run.json").read_text())
    (stage,) = recorded["recipe"]["stages"]
    assert (stage["attention"], stage["steps"], recorded["seed"], recorded["block_size"]) == ("recurrent", 2, 1, 50)
    assert json.loads((out / "model" / "config.json").read_text())["model_type"] == "gpt_neox"
    assert (tmp_path / "runs" / "books_1024" / "tokenizer" / "tokenizer.json").exists()

    line = refused(capsys, *command, "--seed", "1")
    assert "recipe.stages.0.attention was 'recurrent', is 'landmark'" in line
    command += ["--attention", "recurrent"]
    assert "block_size was 50, is 63" in refused(capsys, *command, "--seed", "1", "--block-size", "63")
    assert "(seed was 1, is 2)" in refused(capsys, *command, "--seed", "2")
    assert REPRODUCE.main(["train", *command, "--seed", "1", "--log-every", "2"]) == 0
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small_book"], "did you mean small_books?"),
        (["small_books"], "needs --data"),
        (["small_books", "--data", "DATA/none"], "none/books/train does not exist"),
        (["small_math", "--data", "DATA"], "math/train does not exist"),
        (["small_books", "--data", "DATA", "--model", "a.gguf"], "does not take --model"),
        (["shipped_model", "--data", "DATA", "--steps", "5"], "does not take --steps"),
        (["small_books", "--data", "DATA", "--attention", "sparse"], "choose one of landmark, full"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(data, tmp_path, capsys, arguments, message):
    arguments = [argument.replace("DATA", str(data)) for argument in arguments]
    assert message in refused(capsys, *arguments, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_corpus_that_cannot_be_had_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = refused(capsys, "paper_pg19", "--out", str(tmp_path / "run"))
    assert "the Hugging Face hub does not give openai-community/gpt2" in line


def test_recipes_are_listed_without_loading_torch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith(("reproduce.trainings", "landmark.training"))]:
        monkeypatch.delitem(sys.modules, name)
    assert REPRODUCE.main(["trainings"]) == 0
    listed = capsys.readouterr().out
    assert all(entry.name in listed and entry.scale in listed for entry in TRAININGS)
