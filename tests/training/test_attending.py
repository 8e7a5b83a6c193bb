"""Trainings whose segments remember: they learn, stop and go on like any other."""

import signal
from dataclasses import replace

import pytest
import torch

from landmark.readers.memorizing import load_with_gates
from landmark.training.callbacks import StopOnSignal
from landmark.training.models import load_model, tokenizer_of
from landmark.training.plan import plan_of
from landmark.training.recipe import Recipe
from landmark.training.run import train
from landmark.training.stages import Stage
from reproduce.trainings.small import stage

POSITIONS = {
    "knn": 128,
    "landmark_distractors": 120,
    "landmark_retrieval": 120,
    "landmark_recurrent": 240,
    "recurrent": 128,
}


@pytest.fixture
def plan(options, material, tmp_path):
    def make(attention: str, folder: str, steps: int = 3):
        if attention == "landmark_distractors":
            small = Stage(steps, 120, 2, attention=attention, distractors=40, recall_fraction=0.5)
        else:
            small = stage(attention, steps, block_size=7)
        small = replace(small, window_positions=POSITIONS[attention], batch_size=2, retrieve=min(small.retrieve, 5))
        recipe = Recipe((small,), learning_rate=0.01, warmup_steps=1, micro_batches=2)
        given = options(out=tmp_path / folder, recipe=None, steps=steps, validation=(str(material / "held_out.txt"),))
        return replace(plan_of(given), recipe=recipe, eval_every=2, eval_windows=2)

    return make


@pytest.mark.parametrize("attention", POSITIONS)
def test_a_stopped_training_resumes_exactly(attention, plan, monkeypatch):
    whole = load_with_gates(train(plan(attention, "whole"))).state_dict()

    def stop_in_the_second_step(self, args, state, control, **keywords):
        if state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, args, state, control, **keywords)

    original = StopOnSignal.on_step_end
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", stop_in_the_second_step)
        with pytest.raises(KeyboardInterrupt):
            train(plan(attention, "parts"))
    resumed = load_with_gates(train(plan(attention, "parts"))).state_dict()
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    gates = [tensor for name, tensor in whole.items() if name.endswith("memory_gate")]
    assert len(gates) == (attention == "knn")
    assert all((gate != -2).all() for gate in gates), "gates learn"


def test_a_model_with_gates_is_trained_on_with_them(plan):
    first = train(plan("knn", "first", steps=2))
    more = replace(plan("knn", "more"), model=str(first), config=None, block_size=None)
    gates = [
        model.model.layers[0].self_attn.memory_gate
        for model in (load_with_gates(first), load_model(more, tokenizer_of(more)))
    ]
    assert torch.equal(*gates)
    assert (gates[0] != -2).all()
