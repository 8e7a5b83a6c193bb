"""The models that trainings start from: teachers of self-distillation are the model before conversion."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from landmark.hf import convert, from_pretrained
from landmark.training.adapters import adapt
from landmark.training.models import AdaptersOff, FrozenCopy, load_teacher
from landmark.training.plan import Lora, plan_of
from landmark.training.run import train

IDS = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base(material, tmp_path) -> str:
    # Weights so large that attention matters: fresh ones say nearly the same whatever they look at.
    settings = json.loads((material / "config.json").read_text()) | {"initializer_range": 0.12}
    settings.pop("model_type")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**settings)).save_pretrained(tmp_path / "plain")
    return str(tmp_path / "plain")


def plain(base: str):
    return AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()


@pytest.fixture
def distilling(options, base):
    def make(**changes: object):
        settings = {"steps": 6, "window_positions": 48, "batch_size": 2, "learning_rate": 0.01, "distill": True}
        settings |= {"model": base, "config": None, "recipe": None}
        return options(**(settings | changes))

    return make


def test_a_teacher_without_adapters_is_the_model_before_conversion(base):
    student = adapt(convert(plain(base), block_size=7), Lora(rank=4), base=base)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_()
        expected = plain(base)(input_ids=IDS).logits
    student.train()
    found = AdaptersOff().logits(student, IDS)
    torch.testing.assert_close(found[..., :300], expected, atol=2e-6, rtol=1e-5)
    assert student.training
    assert all(parameter.requires_grad for parameter in trained)
    with torch.no_grad():
        assert not torch.allclose(student(input_ids=IDS).logits[..., :300], expected, atol=0.1)


def test_a_frozen_copy_stays_what_it_was(distilling, base):
    plan = plan_of(distilling())
    teacher = load_teacher(plan, convert(plain(base), block_size=7))
    assert isinstance(teacher, FrozenCopy)
    with torch.no_grad():
        expected = plain(base)(input_ids=IDS).logits
    assert torch.equal(teacher.logits(None, IDS), expected)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.parametrize(("adapter", "rate"), [(None, 0.002), ("lora", 0.01)])
def test_the_student_comes_nearer_to_its_teacher_than_landmarks_alone(distilling, base, adapter, rate, tmp_path):
    log = tmp_path / "log.jsonl"
    out = train(distilling(adapter=adapter, learning_rate=rate, json=str(log), steps=30, batch_size=12))
    losses = [line["text_loss"] for line in map(json.loads, log.read_text().splitlines()) if "text_loss" in line]
    with torch.no_grad():
        wanted = plain(base)(input_ids=IDS).logits.log_softmax(-1)

        def distance(model):
            found = model.eval()(input_ids=IDS).logits[..., :300].log_softmax(-1)
            return (wanted.exp() * (wanted - found)).sum(-1).mean().item()

        assert distance(from_pretrained(out)) < 0.9 * distance(convert(plain(base), block_size=7))
    assert losses[-1] < 0.9 * losses[0] < 0.5  # a divergence, not the cross entropy of a model that knows nothing


def test_weights_of_four_bits_teach_themselves(distilling, tmp_path):
    log = tmp_path / "log.jsonl"
    train(distilling(adapter="lora", load_in="4bit", json=str(log), steps=12))
    losses = [line["text_loss"] for line in map(json.loads, log.read_text().splitlines()) if "text_loss" in line]
    assert losses[-1] < losses[0] < 1


def test_answers_are_learnt_as_they_are(distilling, tmp_path, material):
    log = tmp_path / "log.jsonl"
    plan = plan_of(distilling(adapter="lora", json=str(log), validation=(str(material / "held_out.txt"),)))
    (stage,) = plan.recipe.stages
    stage = replace(stage, window_positions=192, recall_fraction=0.5)
    train(replace(plan, recipe=replace(plan.recipe, stages=(stage,)), eval_windows=2))
    (measured,) = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "eval"]
    assert measured["eval_text_loss"] < 1
    assert measured["eval_answer_loss"] > 1  # cross entropy


def test_what_cannot_be_distilled_is_told_before_any_work(distilling, options, base, tmp_path):
    with pytest.raises(ValueError, match="use --model"):
        plan_of(options(distill=True))
    with pytest.raises(ValueError, match="leave packing out"):
        plan_of(distilling(packing=True))
    with pytest.raises(ValueError, match="sharded"):
        plan_of(distilling(parallel="fsdp"))
    convert(plain(base), block_size=7).save_pretrained(tmp_path / "converted")
    with pytest.raises(ValueError, match="has landmarks already"):
        train(distilling(model=str(tmp_path / "converted")))
    assert "distill" not in plan_of(distilling(distill=False)).identity()
