"""Adapters of low rank, on weights of 32 and of 4 bits."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from landmark.hf import convert, from_pretrained, load_adapter
from landmark.ops.attention import grouped_attention
from landmark.training import models
from landmark.training.adapters import adapt
from landmark.training.plan import Lora
from landmark.training.run import train

IDS = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(1))
LANDMARK = 300


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request, material, tmp_path) -> str:
    """The folder of a small model without landmarks, its head tied to its embeddings or not."""
    return plain_model(material, tmp_path / "plain", tied=request.param)


@pytest.fixture
def tied_base(material, tmp_path) -> str:
    return plain_model(material, tmp_path / "plain", tied=True)


def plain_model(material, folder, *, tied: bool) -> str:
    settings = json.loads((material / "config.json").read_text()) | {"tie_word_embeddings": tied}
    settings.pop("model_type")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**settings)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def adapting(options):
    """Makes options of four steps of LoRA on a model, with changes."""

    def make(base: str, **changes: object):
        settings = {"steps": 4, "window_positions": 48, "batch_size": 2, "learning_rate": 0.01}
        settings |= {"model": base, "config": None, "recipe": None, "adapter": "lora", "lora_rank": 4}
        return options(**(settings | changes))

    return make


def logits(model, **options) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **options).logits


def converted(base: str):
    return convert(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), block_size=7)


def test_nothing_moves_but_linear_layers_and_the_row_of_the_landmark(adapting, base):
    before = converted(base).state_dict()
    after = from_pretrained(train(adapting(base))).state_dict()
    assert before.keys() == after.keys()
    embeddings = "model.embed_tokens.weight"
    assert torch.equal(before[embeddings][:LANDMARK], after[embeddings][:LANDMARK])
    assert not torch.equal(before[embeddings][LANDMARK], after[embeddings][LANDMARK])
    for name in before.keys() - {embeddings}:
        moved = not torch.equal(before[name], after[name])
        if name == "lm_head.weight":  # an untied head stays, a tied one has the embeddings' rows
            assert torch.equal(before[name][:LANDMARK], after[name][:LANDMARK])
        else:
            assert moved == name.endswith("proj.weight"), name


def test_the_adapter_gives_the_finished_model_on_the_model_it_began_with(adapting, base):
    final = train(adapting(base))
    model = load_adapter(base, final.with_name("adapter"))
    torch.testing.assert_close(logits(model), logits(from_pretrained(final)), atol=1e-5, rtol=1e-4)
    assert model.config.landmark == from_pretrained(final).config.landmark


def test_targets_choose_what_gets_adapters(adapting, tied_base):
    before = converted(tied_base).state_dict()
    after = from_pretrained(train(adapting(tied_base, lora_targets=("q_proj", "k_proj")))).state_dict()
    moved = {name for name in before if name.startswith("model.layers") and not torch.equal(before[name], after[name])}
    assert moved == {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in "qk"}
    with pytest.raises(ValueError, match="no_such_proj"):
        adapt(converted(tied_base), Lora(targets=("no_such_proj",)), base=tied_base)


@pytest.mark.parametrize("load_in", [None, "4bit"])
def test_a_lost_training_resumes_exactly(adapting, tied_base, tmp_path, load_in):
    options = {"load_in": load_in, "save_every": 2}
    expected = from_pretrained(train(adapting(tied_base, **options))).state_dict()
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
    others = [name for name in saved if ".lora_" not in name]
    assert [tuple(saved[name].shape) for name in others] == [(1, 32)], "of the embeddings, the landmark's row alone"
    # As if the process had been lost after step 2.
    for name in ("checkpoint-4", "model", "adapter"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    found = from_pretrained(train(adapting(tied_base, **options))).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_the_adapter_alone_gives_what_the_finished_model_gives(adapting, base, tmp_path):
    finished = from_pretrained(train(adapting(base)))
    model = converted(base)
    adapted = PeftModel.from_pretrained(model, tmp_path / "run" / "adapter")
    convert(model, **model.config.landmark)
    torch.testing.assert_close(logits(adapted), logits(finished), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(adapted), logits(converted(base)), atol=1e-3)


def test_the_landmark_is_never_predicted_while_adapters_are_trained(base):
    adapted = adapt(converted(base), Lora(rank=2), base=base)
    assert logits(adapted).shape[-1] == LANDMARK
    torch.testing.assert_close(logits(adapted), logits(converted(base)), atol=1e-6, rtol=0)  # adapters begin at nothing


def test_a_model_with_landmarks_learns_on_with_adapters(adapting, tied_base, tmp_path):
    first = train(adapting(tied_base, adapter=None, lora_rank=None, out=tmp_path / "first"))
    second = adapting(str(first), out=tmp_path / "second", block_size=None)
    before = from_pretrained(first).config.landmark
    count = {"trained_tokens": 2 * before["trained_tokens"]}
    assert from_pretrained(train(second)).config.landmark == before | count


def test_gradient_checkpointing_computes_twice_and_changes_no_weight(adapting, tied_base, tmp_path, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(options["block_size"])
        return grouped_attention(*arguments, **options)

    monkeypatch.setattr("landmark.hf.calls.grouped_attention", counted)
    found = []
    for twice in (False, True):
        calls.clear()
        folder = train(adapting(tied_base, out=tmp_path / str(twice), gradient_checkpointing=twice))
        found.append(from_pretrained(folder))
        # Two layers, four steps; the checks of a conversion have blocks of other sizes.
        assert calls.count(7) == (16 if twice else 8)
    for one, other in zip(*(model.state_dict().values() for model in found), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_four_bits_are_trained_and_finished_as_they_were_trained(adapting, tied_base, tmp_path):
    folder = train(adapting(tied_base, load_in="4bit"))
    finished = from_pretrained(folder)
    models.keep_4bit_weights()
    four = AutoModelForCausalLM.from_pretrained(tied_base, quantization_config=models.nf4_config(torch.float32))
    assert four.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    model = convert(four, block_size=7)
    before = logits(model)
    adapted = PeftModel.from_pretrained(model, tmp_path / "run" / "adapter")
    torch.testing.assert_close(logits(finished), logits(adapted), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(finished), before, atol=1e-3)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": None, "lora_rank": None, "load_in": "4bit"}, "give --adapter lora with --load-in 4bit"),
        ({"adapter": None}, "give --adapter lora too"),
        ({"lora_rank": 0}, "lora_rank is 0: give a number from 1"),
        ({"lora_alpha": -1}, "lora_alpha is -1: give 1 or more"),
        ({"parallel": "fsdp"}, "leave --parallel fsdp out"),
    ],
)
def test_wrong_combinations_are_named(adapting, changes, message):
    with pytest.raises(ValueError, match=message):
        train(adapting("nowhere", **changes))


def test_adapters_need_a_model_that_knows_something(options):
    with pytest.raises(ValueError, match="use --model, not --config"):
        train(options(adapter="lora"))


def test_what_is_not_installed_or_cannot_work_is_said_before_any_work(adapting, monkeypatch, tmp_path):
    four = adapting("nowhere", load_in="4bit")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this device")

    with monkeypatch.context() as patch:
        patch.setattr("bitsandbytes.functional.quantize_4bit", broken)
        with pytest.raises(ValueError, match=r"does not support this machine's \w+ \(no kernel for this device\)"):
            train(four)
    with monkeypatch.context() as patch:
        patch.setattr(models, "is_bitsandbytes_available", lambda: False)
        with pytest.raises(ValueError, match=r"landmark-attention\[quantized\]"):
            train(four)
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"landmark-attention\[lora\]"):
        train(adapting("nowhere"))
    assert not (tmp_path / "run").exists()
