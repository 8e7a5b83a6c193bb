"""Training in several processes: the same loss as in one, and checkpoints that move between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from landmark.hf import from_pretrained
from landmark.training.recipe import read_recipe
from landmark.training.run import check_shares

STEPS = 6


def start(material: Path, out: Path, processes: int, *options: str) -> subprocess.Popen:
    """`landmark train` with the material, in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "landmark.cli.main", "train"]
    command += ["--texts", str(material / "text.txt"), "--out", str(out), "--json", str(out) + ".jsonl"]
    command += ["--config", str(material / "config.json"), "--tokenizer", str(material / "tokenizer")]
    command += ["--steps", str(STEPS), "--window-positions", "96", "--batch-size", "2", "--micro-batches", "4"]
    command += ["--block-size", "7", "--log-every", "1", "--save-every", "2", "--learning-rate", "0.01", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(training: subprocess.Popen) -> None:
    _, said = training.communicate(timeout=240)
    assert training.returncode == 0, said


def losses(out: Path) -> list[tuple[int, float, float]]:
    events = [json.loads(line) for line in Path(str(out) + ".jsonl").read_text().splitlines()]
    return [(e["step"], e["loss"], e["text_loss"]) for e in events if e["event"] == "train"]


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """The folder of a training in one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(material, out, 1))
    return out


def assert_same_losses(out: Path, whole: Path) -> None:
    found, expected = (torch.tensor(losses(folder)[-STEPS:], dtype=torch.float64) for folder in (out, whole))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one(material, whole, tmp_path, processes):
    finish(start(material, tmp_path / "run", processes))
    assert_same_losses(tmp_path / "run", whole)
    expected = from_pretrained(whole / "model").state_dict()
    for name, tensor in from_pretrained(tmp_path / "run" / "model").state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3)


def test_a_checkpoint_of_two_processes_goes_on_in_one(material, whole, tmp_path):
    out = tmp_path / "run"
    finish(start(material, out, 2))
    # As if both processes had been lost after step 4, the last but one checkpoint.
    (out / f"checkpoint-{STEPS}").rename(tmp_path / "later")
    (out / "model").rename(tmp_path / "model")
    log = Path(str(out) + ".jsonl")
    before = log.read_text().splitlines()
    log.write_text("\n".join(line for line in before if json.loads(line)["step"] < STEPS - 1) + "\n")
    finish(start(material, out, 1))
    assert_same_losses(out, whole)


def test_shares_must_be_even(material):
    recipe = read_recipe(material / "recipe.toml")
    check_shares(recipe, 2)
    with pytest.raises(ValueError, match="3 processes cannot share 2 micro-batches"):
        check_shares(recipe, 3)
