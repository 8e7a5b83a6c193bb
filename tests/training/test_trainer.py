"""The trainer: attention that carries states across segments resumes exactly, and packed documents stay apart."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from landmark.data.tokens import TokenFile
from landmark.hf import from_pretrained
from landmark.readers.memorizing import load_with_gates
from landmark.training.callbacks import StopOnSignal
from landmark.training.models import load_model, tokenizer_of
from landmark.training.plan import plan_of
from landmark.training.recipe import Recipe
from landmark.training.run import EVAL_SEED, train
from landmark.training.stages import Stage, StageBatches
from landmark.training.trainer import attention_arguments
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


def test_documents_reach_the_attention(material):
    documents = torch.tensor([[0, 0, 1]])
    stage = Stage(1, 48, 1, packing=True)
    rest = {"tokens": 3, "training": False, "plain": torch.tensor([True]), "distractors": {}}
    rest["answers"] = torch.zeros(1, 3, dtype=torch.bool)
    arguments = attention_arguments(None, stage, 2, None, documents, **rest)
    assert arguments["landmark_documents"] is documents


@pytest.fixture
def short_documents(material, tmp_path) -> tuple[str, ...]:
    """The material's text in files of a few lines, some of them shorter than a block."""
    lines = (material / "text.txt").read_text().split("\n")
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(0, len(lines), 3):
        (folder / f"{number:03}.txt").write_text("\n".join(lines[number : number + 1 + number % 3]))
    return tuple(str(path) for path in sorted(folder.iterdir()))


def test_a_training_on_packed_documents_is_another_and_evaluates_the_same_way(options, short_documents, tmp_path):
    settings = {"texts": short_documents, "recipe": None, "steps": 3, "window_positions": 96, "batch_size": 2}
    settings |= {"learning_rate": 0.01, "validation": short_documents, "eval_every": 3, "eval_windows": 4}
    found = {}
    for packing in (False, True):
        out, log = tmp_path / str(packing), tmp_path / f"{packing}.jsonl"
        train(options(**settings, packing=packing, out=out, json=str(log)))
        found[packing] = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(torch.isfinite(torch.tensor(event["loss"])) for event in found[True] if event["event"] == "train")
    ends = [[event["eval_text_loss"] for event in events if event["event"] == "eval"] for events in found.values()]
    assert len(ends[0]) == len(ends[1]) == 1
    assert ends[0] != ends[1]
    one, other = (from_pretrained(tmp_path / str(packing) / "model").state_dict() for packing in (False, True))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_measured_loss_is_that_of_each_document_alone(options, short_documents, tmp_path):
    """What an evaluation of packed windows logs, computed again from the finished model, document by document."""
    log = tmp_path / "log.jsonl"
    settings = {"texts": short_documents, "recipe": None, "steps": 2, "window_positions": 96, "batch_size": 2}
    settings |= {"validation": short_documents, "eval_every": 2, "eval_windows": 4, "packing": True}
    model = from_pretrained(train(options(**settings, json=str(log)))).eval()
    (measured,) = (json.loads(line)["eval_text_loss"] for line in log.read_text().splitlines() if "eval_loss" in line)

    texts = TokenFile.open(tmp_path / "run" / "validation_tokens")
    stops = [document.stop for document in texts.documents]
    stage = Stage(2, 96, 2, packing=True)
    batches = StageBatches(texts.ids, None, [stage], block_size=7, seed=EVAL_SEED, document_stops=stops)
    losses = []
    for batch in (batches[0], batches[1]):
        for ids, documents in zip(batch["input_ids"], batch["documents"], strict=True):
            start = 0
            for length in documents.unique_consecutive(return_counts=True)[1].tolist():
                document = ids[None, start : start + length]
                with torch.no_grad():
                    logits = model(input_ids=document, landmark_phase=(batch["phase"] + start) % 7).logits
                losses.append(cross_entropy(logits[0, :-1], document[0, 1:], reduction="none"))
                start += length
    assert len(losses) > 8, "windows of several documents"
    assert measured == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)
