"""Adapters as one file: what was trained, on the model it belongs to and on no other."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import landmark
from landmark.hf.serialization import FILE, describe, write_adapter
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
    write_adapter(folder / FILE, tensors, describe(plain(), tensors, settings, LORA.alpha / LORA.rank))
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
    (tmp_path / "short.safetensors").write_bytes((folder / FILE).read_bytes()[:-50])
    with pytest.raises(ValueError, match="cannot be read as an adapter"):
        landmark.load_adapter(plain(), tmp_path / "short.safetensors")
    save_file(load_file(folder / FILE), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="has no entry for the model"):
        landmark.load_adapter(plain(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="no model can be loaded"):
        landmark.load_adapter(tmp_path / "nothing", folder)
