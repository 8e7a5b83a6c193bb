"""Weights in 8 bits: close to what they were, quick to refuse what they cannot do."""

from typing import Any

import pytest
import torch
from families import family
from torch import nn

import landmark
from landmark.hf.fingerprint import differences, model_fingerprint, model_mark
from landmark.hf.int8 import Int8Linear

IDS = torch.arange(40)[None] % 50 + 2


@pytest.fixture
def folder(tmp_path):
    """Of a model that opens every block, so that what is read and what is decoded are the same."""
    landmark.convert(family("llama", tie_word_embeddings=True), block_size=5, retrieve=8).save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def logits(model, steps: int) -> torch.Tensor:
    """Logits of all tokens, the last `steps` of them one by one."""
    cache = landmark.LandmarkCache(model.config)
    parts = IDS.split([IDS.shape[1] - steps, *[1] * steps], 1)
    return torch.cat([model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in parts], 1)


@pytest.mark.parametrize(("width", "groups"), [(512, 2), (576, 3), (40, 1)])
def test_numbers_are_rounded_to_the_scale_of_their_group(width, groups):
    linear: Any = nn.Linear(width, 6)
    with torch.no_grad():
        linear.weight[0] = 0
    quantized: Any = Int8Linear(linear)
    assert quantized.scales.shape == (6, groups)
    for rows in (1, 30):
        x = torch.eye(width)[:rows]
        error = (quantized(x) - linear(x)).abs().T.detach()
        assert (error <= quantized.scales[:, :1] * 0.501).all()
    assert not (quantized(torch.eye(width)) - quantized.bias)[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_computes_nearly_the_same_read_and_decoded(folder, dtype):
    exact: Any = landmark.from_pretrained(folder, dtype=dtype)
    model: Any = landmark.from_pretrained(folder, dtype=dtype, weights="int8")
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    expected, read, decoded = logits(exact, 0), logits(model, 0), logits(model, 10)
    scale = expected.abs().max()
    assert 0 < (read - expected).abs().max() < 0.05 * scale
    assert (decoded - read).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-5) * scale
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings, exact.get_input_embeddings().weight)


def test_what_rounded_weights_cannot_do_is_refused(folder, tmp_path):
    model = landmark.from_pretrained(folder, weights="int8")
    with pytest.raises(ValueError, match="cannot be saved, for its weights were rounded to 8 bits"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="cannot be trained: load the model without"):
        model.train()
    with pytest.raises(ValueError, match="cannot be resized"):
        model.resize_token_embeddings(100)
    with pytest.raises(ValueError, match="weights is 'int4': give 'int8'"):
        landmark.from_pretrained(folder, weights="int4")


def test_they_are_other_weights(folder):
    one, other = (model_fingerprint(landmark.from_pretrained(folder, weights=weights)) for weights in (None, "int8"))
    found = {name: (before, now) for name, before, now in differences(one, other)}
    assert found.keys() == {"number type", "weights"}
    assert found["number type"] == ("float32", "float32, weights in 8 bits")


def test_a_write_to_the_numbers_is_noticed(folder):
    model: Any = landmark.from_pretrained(folder, weights="int8")
    before = model_mark(model)
    assert model_mark(model) == before
    model.base_model.layers[0].mlp.up_proj.numbers.zero_()
    assert model_mark(model) != before
