"""Training in several processes: the same as in one, whichever way they share it, and going on from any to any."""

import json
from pathlib import Path

import pytest
import torch
from processes import (
    STEPS,
    WAYS,
    assert_same_training,
    finish,
    kill_after,
    log_of,
    measures,
    options,
    resumable,
    start,
)

from landmark.cli.main import main
from landmark.hf import from_pretrained


@pytest.fixture(scope="module")
def validation(material) -> list[str]:
    return ["--validation", str(material / "held_out.txt"), "--eval-every", str(STEPS), "--eval-windows", "4"]


@pytest.fixture(scope="module")
def whole(material, validation, tmp_path_factory) -> Path:
    """The folder of a training in one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *options(material, out, *validation)]) == 0
    return out


def assert_same(out: Path, whole: Path) -> None:
    assert_same_training(measures(out), measures(whole), out.name)
    expected = from_pretrained(whole / "model").state_dict()
    found = from_pretrained(out / "model").state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3)


def validation_losses(out: Path) -> list[float]:
    events = [json.loads(line) for line in Path(log_of(out)).read_text().splitlines()]
    return [e[name] for e in events if e["event"] == "eval" for name in ("eval_loss", "eval_text_loss")]


def test_two_processes_train_as_one_and_their_checkpoints_go_on_in_one(material, validation, whole, tmp_path):
    outs = [tmp_path / way for way in WAYS]
    finish(start(2, *(options(material, out, "--parallel", out.name, *validation) for out in outs)))
    for out in outs:
        assert_same(out, whole)
        assert validation_losses(out) == pytest.approx(validation_losses(whole), abs=1e-5)
        moved = resumable(out, tmp_path / f"on from {out.name}", step=4)
        assert main(["train", *options(material, moved, *validation)]) == 0
        assert_same(moved, whole)


def test_four_processes_go_on_where_one_stopped_and_train_as_it_does(material, validation, whole, tmp_path):
    ways = {way: resumable(whole, tmp_path / way, step=4) for way in WAYS}
    # Activations that are computed twice come out the same.
    again = ("--gradient-checkpointing", *validation)
    finish(start(4, *(options(material, out, "--parallel", way, *again) for way, out in ways.items())))
    for out in ways.values():
        assert_same(out, whole)


@pytest.mark.parametrize(("way", "worker"), [("ddp", 0), ("sequence", 1)])
def test_a_lost_process_ends_the_training_and_costs_the_steps_since_a_checkpoint(
    way, worker, material, whole, tmp_path
):
    out = tmp_path / "run"
    running = start(2, options(material, out, "--parallel", way))
    kill_after(3, out, running, worker)
    _, said = running.communicate(timeout=120)
    assert running.returncode != 0, said
    assert not (out / "model").exists()

    lost = len(measures(out))
    assert main(["train", *options(material, out)]) == 0
    resumed = measures(out)[lost:]
    assert_same_training(resumed, measures(whole)[STEPS - len(resumed) :], "after a loss")
    assert 2 <= len(resumed) <= 4, "it went on from the checkpoint of step 2 or 4"
