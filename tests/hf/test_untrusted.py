"""A model is data: code that comes with it is not run, pickles are not read, nothing is downloaded that it names."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import landmark
from landmark.hf.loading import read_config, read_tokenizer, read_weights


@pytest.fixture
def plain(tmp_path):
    """A saved model without landmarks, in a folder."""
    small = LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(small).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def converted(plain):
    landmark.convert(LlamaForCausalLM.from_pretrained(plain), block_size=7).save_pretrained(plain)
    return plain


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def with_code(folder, **fields):
    """A model of a type that transformers lacks, with code for it that leaves a mark when it is run."""
    mark = folder / "mark"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    classes = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": ["own.T", "own.T"]}
    change_config(folder, auto_map=classes, **fields)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": classes, "tokenizer_class": "Own"}))
    return mark


@pytest.fixture
def nobody_to_ask(monkeypatch):
    def ask(prompt=""):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)


def test_code_of_a_model_is_not_run(converted, nobody_to_ask):
    mark = with_code(converted, model_type="own")
    for load in (landmark.from_pretrained, read_config, read_tokenizer, read_weights):
        with pytest.raises(ValueError, match="code of its own, which is never run") as error:
            load(converted)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="own"):  # its code has no class of that name
        landmark.from_pretrained(converted, trust_remote_code=True)
    assert mark.exists()


def test_a_family_of_transformers_does_not_need_the_code_beside_it(converted, nobody_to_ask):
    mark = with_code(converted)
    landmark.from_pretrained(converted)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_attention_is_not_downloaded(converted, name):
    change_config(converted, **{name: "somebody/kernel"})
    with pytest.raises(ValueError, match="names 'somebody/kernel' as its attention"):
        landmark.from_pretrained(converted)


@pytest.mark.parametrize("kind", ["one file", "an index of pickles", "an index of safetensors"])
def test_pickled_weights_are_not_read(converted, kind, monkeypatch):
    state = load_file(converted / "model.safetensors")
    (converted / "model.safetensors").unlink()
    torch.save(state, converted / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "pytorch_model.bin")}
    if kind != "one file":
        name = "pytorch_model.bin.index.json" if kind == "an index of pickles" else "model.safetensors.index.json"
        (converted / name).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"are pickled \(pytorch_model.bin"):
        landmark.from_pretrained(converted)
    if kind == "one file":
        trusted = landmark.from_pretrained(converted, use_safetensors=False)
        assert torch.equal(trusted.state_dict()["model.norm.weight"], state["model.norm.weight"])


def test_an_adapter_does_not_name_the_model_to_load(converted):
    (converted / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    with pytest.raises(ValueError, match="holds an adapter"):
        landmark.from_pretrained(converted)
    with pytest.raises(ValueError, match="holds an adapter"):
        read_config(converted)
