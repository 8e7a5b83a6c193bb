"""Fingerprints: the same for what computes the same, and for nothing else."""

import pytest
import torch
from families import family
from peft import LoraConfig, PeftModel, get_peft_model

import landmark
from landmark.hf import fingerprint
from landmark.hf.compat import config_fields
from landmark.hf.fingerprint import differences, model_fingerprint, model_mark

LORA = {"r": 4, "target_modules": ["q_proj", "k_proj"], "init_lora_weights": False}


@pytest.fixture
def model():
    return landmark.convert(family("llama"), block_size=7, retrieve=2, local_blocks=1)


def changed(model, before):
    """The names under which the fingerprint differs from `before`."""
    return [name for name, *_ in differences(before, model_fingerprint(model))]


def swap_rows(weight):
    weight.data[[3, 5]] = weight.data[[5, 3]]


def swap_numbers(weight):
    weight.data[7, [2, 4]] = weight.data[7, [4, 2]]


def one_number(weight):
    weight.data[1, 1] += 1e-3


def through_numpy(weight):
    weight.detach().numpy()[1, 1] += 1e-3


def other_storage(weight):
    weight.data = weight.data * 1.5


@torch.no_grad()
def in_place(weight):
    weight[1, 1] = 0


@pytest.mark.parametrize("change", [swap_rows, swap_numbers, one_number, through_numpy, other_storage, in_place])
@pytest.mark.parametrize("weight", ["embed_tokens.weight", "layers.1.mlp.up_proj.weight"])
def test_every_number_of_every_weight_counts_however_it_was_changed(model, weight, change):
    before = model_fingerprint(model)
    parameter = model.model.get_parameter(weight)
    kept = parameter.detach().clone()
    change(parameter)
    assert changed(model, before) == ["weights"]
    parameter.data.copy_(kept)
    assert changed(model, before) == []


def test_weights_are_hashed_once(model, monkeypatch):
    hashed = []
    usual = fingerprint._sha256
    monkeypatch.setattr(fingerprint, "_sha256", lambda data, what: hashed.append(what) or usual(data, what))
    first = model_fingerprint(model)
    assert hashed
    hashed.clear()
    assert model_fingerprint(model) == first
    assert hashed == []
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    assert changed(model, first) == ["weights"]
    assert len(hashed) == 1


def test_weights_of_every_kind_are_hashed():
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "half": torch.randn(3, 5).bfloat16(),
        "turned": torch.randn(700, 9).T,
        "part": torch.arange(5000, dtype=torch.int8)[3:],
        "truth": torch.tensor([True, False]),
    }
    found = fingerprint.hashes(tensors)
    assert len(set(found.values())) == len(tensors)
    assert fingerprint.hashes({name: tensor.clone() for name, tensor in tensors.items()}) == found
    with torch.inference_mode():
        assert fingerprint.hashes({"scalar": torch.tensor(1.5)}) == {"scalar": found["scalar"]}
    assert fingerprint.hashes({"x": torch.zeros(4, 2)}) != fingerprint.hashes({"x": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="x has no data here"):
        fingerprint.hashes({"x": torch.empty(3, device="meta")})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rms_norm_eps", 1e-5),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("num_key_value_heads", 1),
        ("max_position_embeddings", 512),
        ("attn_logit_softcapping", 30.0),
        ("layer_types", ["full_attention", "full_attention", "sliding_attention"]),
    ],
)
def test_config_fields_that_change_what_is_computed_are_named(model, name, value):
    before = model_fingerprint(model)
    setattr(model.config, name, value)
    assert changed(model, before) == [name]


def test_the_frequencies_of_rotary_positions_count(model):
    before = model_fingerprint(model)
    model.config.rope_parameters = model.config.rope_parameters | {"rope_theta": 5000.0}
    assert changed(model, before) == ["rope_theta"]


def test_what_cannot_change_keys_and_values_does_not_count(model, tmp_path):
    before = model_fingerprint(model)
    model.config.update(
        {"use_cache": False, "attention_dropout": 0.5, "eos_token_id": 9, "initializer_range": 1.0, "vocab_size": 9}
    )
    model.train().requires_grad_(False)
    assert changed(model, before) == []
    model.config.attention_dropout = 0.0
    model.save_pretrained(tmp_path)
    assert changed(landmark.from_pretrained(tmp_path), before) == []


def test_a_saved_model_has_the_same_fields_under_every_release():
    def fields(kind, **differences):
        return config_fields(family(kind, **differences).config)

    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    assert fields("llama", output_router_logits=False, rope_parameters=rope) == fields("llama")
    assert fields("llama", partial_rotary_factor=1.0) == fields("llama")
    assert "swiglu_alpha" not in fields("gpt_oss")
    assert fields("llama", swiglu_alpha=2.0)["swiglu_alpha"] == 2.0


@pytest.fixture
def tuned(model):
    tuned = get_peft_model(model, LoraConfig(**LORA))
    tuned.add_adapter("other", LoraConfig(**LORA))
    tuned.set_adapter("default")
    return tuned


def test_adapters_in_use_count_and_others_do_not(model):
    plain = model_fingerprint(model)
    assert plain["adapters"] == "none"
    tuned = get_peft_model(model, LoraConfig(**LORA))
    first = model_fingerprint(model)
    assert list(differences(plain, first)) == [("adapters", "none", first["adapters"])]
    tuned.add_adapter("other", LoraConfig(**LORA))
    assert model_fingerprint(model) == first
    mark = model_mark(model)
    tuned.set_adapter("other")
    assert changed(model, first) == ["adapters"]
    assert model_mark(model) != mark
    with tuned.disable_adapter():
        assert model_fingerprint(model) == plain
    tuned.set_adapter("default")
    assert model_fingerprint(model) == first
    tuned.delete_adapter("default")
    tuned.delete_adapter("other")
    assert model_fingerprint(model) == plain


def test_scaling_and_weights_of_an_adapter_count(model, tuned):
    before, mark = model_fingerprint(model), model_mark(model)
    layer = model.model.layers[1].self_attn.q_proj
    layer.scaling["other"] *= 2
    assert changed(model, before) == []
    layer.scaling["default"] *= 2
    assert changed(model, before) == ["adapters"]
    assert model_mark(model) != mark
    layer.scaling["default"] /= 2
    assert changed(model, before) == []
    layer.lora_B["default"].weight.data[0, 0] += 1e-3
    assert changed(model, before) == ["adapters"]


def test_several_adapters_count_and_so_does_their_order(model, tuned):
    one = model_fingerprint(model)
    tuned.base_model.set_adapter(["default", "other"])
    both = model_fingerprint(model)
    tuned.base_model.set_adapter(["other", "default"])
    turned = model_fingerprint(model)
    assert len({found["adapters"] for found in (one, both, turned)}) == 3
    assert both["adapters"].startswith("2 active")


def test_a_merged_adapter_is_part_of_the_weights(model, tuned):
    with tuned.disable_adapter():
        plain = model_fingerprint(model)
    active, mark = model_fingerprint(model), model_mark(model)
    tuned.merge_adapter()
    merged = model_fingerprint(model)
    assert changed(model, plain) == ["weights"]
    assert merged["adapters"] == "none" != active["adapters"]
    assert model_mark(model) != mark
    with tuned.disable_adapter():  # the next forward takes it out again
        assert "adapters" in changed(model, merged)
    assert model_fingerprint(tuned.merge_and_unload()) == merged


def test_what_an_adapter_is_called_does_not_matter(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tuned = get_peft_model(model, LoraConfig(**LORA, modules_to_save=["norm"], trainable_token_indices=[3, 5]))
    model.model.norm.modules_to_save["default"].weight.data += 1
    expected = model_fingerprint(model)
    tuned.save_pretrained(tmp_path / "adapter")
    again = landmark.from_pretrained(tmp_path / "model")
    # Not `again.load_adapter`: with transformers 5.17 it leaves out `modules_to_save`, and 5.24 takes no peft there is.
    named = PeftModel.from_pretrained(again, tmp_path / "adapter", adapter_name="law")
    assert model_fingerprint(again) == expected
    with named.disable_adapter():
        assert model_fingerprint(again)["adapters"] == "none"
