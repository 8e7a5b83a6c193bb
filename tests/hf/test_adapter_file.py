"""Adapters as one file: what was trained, on the model it belongs to and on no other."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import landmark
from landmark.hf.adapter_file import FILE, describe, read_adapter
from landmark.hf.config import is_converted
from landmark.training.adapters import adapt
from landmark.training.plan import Lora

IDS = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(1))
LORA = Lora(rank=3, alpha=6)


def plain(seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "vocab_size": 90, "max_position_embeddings": 256, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**shape | changes)).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an adapter of random numbers, and what the model computes with it."""
    folder = tmp_path_factory.mktemp("adapter")
    adapted = adapt(landmark.convert(plain(), block_size=7, retrieve=2), LORA, base="")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).bfloat16())
    adapted.save_pretrained(folder / "peft")
    tensors = load_file(folder / "peft" / FILE)
    settings = adapted.config.landmark | {"trained_tokens": 100}
    save_file(tensors, folder / FILE, describe(plain(), tensors, settings, LORA.alpha / LORA.rank))
    with torch.no_grad():
        return folder, adapted.eval()(input_ids=IDS).logits


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_model_with_its_adapter_computes_what_was_trained_and_can_be_saved(trained, tmp_path):
    folder, expected = trained
    plain().save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = landmark.load_adapter(tmp_path / "base", folder)
    assert model.config.landmark["block_size"] == 7
    assert model.config.landmark["trained_tokens"] == 100
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(landmark.from_pretrained(tmp_path / "saved")), logits(model))


def test_a_model_at_hand_and_another_number_format_will_do(trained):
    folder, expected = trained
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = landmark.load_adapter(plain().bfloat16(), folder / FILE)
    assert model.dtype == torch.bfloat16
    assert (logits(model).float() - expected).abs().mean() < 0.05


def test_nearly_the_same_weights_are_taken_with_a_warning(trained):
    folder, expected = trained
    near = plain()
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
    with pytest.warns(UserWarning, match="another quantization"):
        model = landmark.load_adapter(near, folder)
    assert not torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: plain(seed=1), "other weights"),
        (lambda: plain(intermediate_size=64), "intermediate_size is 48, that of the model 64"),
        (lambda: plain(num_hidden_layers=1), "num_hidden_layers"),
        (lambda: landmark.convert(plain(), block_size=7), "has landmarks already"),
    ],
)
def test_another_model_is_refused(trained, model, told):
    with pytest.raises(ValueError, match=told) as error:
        landmark.load_adapter(model(), trained[0])
    assert "\n" not in str(error.value)


def test_what_is_no_adapter_of_ours_is_refused(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ValueError, match="cannot be read as an adapter"):
        landmark.load_adapter(plain(), tmp_path)
    save_file(load_file(folder / FILE), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="has no entry for the model"):
        landmark.load_adapter(plain(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="no model at"):
        landmark.load_adapter(tmp_path / "nothing", folder)


def test_a_file_that_is_cut_anywhere_is_refused(trained, tmp_path):
    whole, cut = (trained[0] / FILE).read_bytes(), tmp_path / "cut.safetensors"
    for length in (*range(0, 40), *range(40, len(whole), len(whole) // 60), len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read") as error:
            read_adapter(cut)
        assert "\n" not in str(error.value)


MISSING = object()
HEADERS = {
    "settings": [MISSING, None, [], "x", 3, {}, {"block_size": 7}, {"block_size": "7", "landmark_id": 90}]
    + [{"block_size": 7, "landmark_id": 90} | odd for odd in ({"block_size": 0}, {"landmark_id": -1}, {"zork": 1})]
    + [{"block_size": 7, "landmark_id": 90} | odd for odd in ({"retrieve": "4"}, {"selection": "any"})],
    "scale": [MISSING, None, "2", [2.0], True, 0, -1.0, float("nan"), float("inf")],
    "config": [MISSING, None, [], "x", 3],
    "sample": [MISSING, None, 3, "", "AAA", "no base 64!", "AAAA", "AADAfw==", "AACAPw=="],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in HEADERS for value in HEADERS[field]])
def test_a_header_that_says_nothing_sound_is_refused(trained, tmp_path, field, value):
    """Among them samples of one NaN and of a single 1.0."""
    with safe_open(trained[0] / FILE, "pt") as file:
        entry = json.loads(file.metadata()["landmark"])
    entry |= {field: value}
    if value is MISSING:
        del entry[field]
    save_file(load_file(trained[0] / FILE), tmp_path / FILE, {"landmark": json.dumps(entry)})
    with pytest.raises(ValueError, match="is a damaged adapter") as error:
        landmark.load_adapter(plain(), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", ["", "{", "null", "[]", "3", '"x"', "[" * 100_000, "{}"])
def test_a_header_that_is_no_object_is_refused(trained, tmp_path, header):
    save_file(load_file(trained[0] / FILE), tmp_path / FILE, {"landmark": header})
    with pytest.raises(ValueError, match="is a damaged adapter"):
        landmark.load_adapter(plain(), tmp_path)


def changed(tensors: dict[str, torch.Tensor], end: str, change) -> dict[str, torch.Tensor]:
    """The tensors with the first whose name ends so replaced, or left out where `change` gives None."""
    name = next(name for name in tensors if name.endswith(end))
    rest = {key: value for key, value in tensors.items() if key != name}
    new = change(tensors[name])
    return rest if new is None else rest | {name: new.contiguous()}


@pytest.mark.parametrize("end", ["lora_A.weight", "lora_B.weight", "trainable_tokens_delta"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: None,
        lambda tensor: tensor * float("nan"),
        lambda tensor: tensor + float("inf"),
        lambda tensor: tensor.int(),
        lambda tensor: tensor[0],
        lambda tensor: tensor.repeat(2, 2),
        lambda tensor: tensor[:0],
    ],
)
def test_tensors_that_cannot_be_merged_are_refused(trained, tmp_path, end, change):
    with safe_open(trained[0] / FILE, "pt") as file:
        header = file.metadata()
    save_file(changed(load_file(trained[0] / FILE), end, change), tmp_path / FILE, header)
    model = plain()
    with pytest.raises(ValueError, match=r"damaged adapter|another model"):
        landmark.load_adapter(model, tmp_path)
    assert not is_converted(model.config)


def test_tensors_of_another_method_are_not_left_out_in_silence(trained, tmp_path):
    with safe_open(trained[0] / FILE, "pt") as file:
        header = file.metadata()
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    save_file(load_file(trained[0] / FILE) | {name: torch.ones(48, 1)}, tmp_path / FILE, header)
    with pytest.raises(ValueError, match="lora_magnitude_vector"):
        landmark.load_adapter(plain(), tmp_path)


def test_a_model_of_nan_is_no_near_relative(trained):
    model = plain()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="other weights"):
        landmark.load_adapter(model, trained[0])


def test_what_the_config_shows_is_refused_before_weights_are_read(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("landmark.hf.adapter_file.read_weights", None)
    plain(intermediate_size=64).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="intermediate_size is 48, that of the model 64"):
        landmark.load_adapter(tmp_path / "other", trained[0])
    landmark.convert(plain(), block_size=9).save_pretrained(tmp_path / "converted")
    with pytest.raises(ValueError, match="has landmarks already, after blocks of 9 tokens"):
        landmark.load_adapter(tmp_path / "converted", trained[0])
    plain().save_pretrained(tmp_path / "base")
    with safe_open(trained[0] / FILE, "pt") as file:
        entry = json.loads(file.metadata()["landmark"])
    entry["settings"]["block_size"] = 500
    save_file(load_file(trained[0] / FILE), tmp_path / FILE, {"landmark": json.dumps(entry)})
    with pytest.raises(ValueError, match="nothing fits the trained range"):
        landmark.load_adapter(tmp_path / "base", tmp_path)


def test_settings_of_the_adapter_are_no_options(trained):
    with pytest.raises(ValueError, match=r"block_size is 7 in .*leave block_size out"):
        landmark.load_adapter("nowhere", trained[0], block_size=9)
