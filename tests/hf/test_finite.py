"""Weights that make NaN or infinity are an error that names the layer, unless they are allowed."""

import pytest
import torch
from families import family

import landmark
from landmark.hf.finite import FiniteCheck
from landmark.stream import Stream

IDS = torch.arange(3, 43)[None]
PLACES = {
    "model.layers.1.self_attn.k_proj.weight": "keys or values of layer 1",
    "model.layers.1.self_attn.v_proj.weight": "keys or values of layer 1",
    "model.layers.0.mlp.down_proj.weight": "keys or values of layer 1",
    "model.layers.2.self_attn.o_proj.weight": "the output of the last layer",
    "model.norm.weight": "the output of the last layer",
    "lm_head.weight": "the logits",
}


def broken(name, number, family_name="llama"):
    model = landmark.convert(family(family_name), block_size=5, retrieve=2)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = number
    return model


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", PLACES)
@torch.no_grad()
def test_the_layer_is_named(name, number):
    model = broken(name, number)
    cache = landmark.LandmarkCache(model.config)
    with pytest.raises(ValueError, match=f"not finite .* in (the )?{PLACES[name]}: .*allow_nonfinite=True"):
        model(input_ids=IDS, past_key_values=cache)
    allowed = landmark.LandmarkCache(model.config, allow_nonfinite=True)
    model(input_ids=IDS, past_key_values=allowed)
    assert allowed.tokens_read() == [IDS.shape[1]]


@torch.no_grad()
def test_a_native_sliding_layer_is_checked_too():
    model = broken("model.layers.0.self_attn.k_proj.weight", torch.nan, "gemma2")
    with pytest.raises(ValueError, match="keys or values of layer 0"):
        landmark.read(model, IDS)


@torch.no_grad()
def test_a_chunk_that_is_not_finite_does_not_count_as_read():
    model = landmark.convert(family("llama"), block_size=5, retrieve=2)
    cache = landmark.read(model, IDS)
    model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        landmark.read(model, IDS, cache)
    assert cache.tokens_read() == [IDS.shape[1]]
    with pytest.raises(ValueError, match="interrupted"):
        landmark.read(model, IDS, cache)


def test_a_number_in_padding_may_be_anything():
    real = torch.tensor([[True, True, True], [True, False, False]])
    stream = Stream.lay_out(real, torch.zeros(2, dtype=torch.long), 5)
    keys = torch.zeros(2, 1, stream.width, 4)
    keys[1, :, 1:] = torch.nan
    check = FiniteCheck(stream)
    check.watch("keys", keys)
    check.check()
    keys[1, :, 0] = torch.inf
    check.watch("keys of another layer", keys)
    with pytest.raises(ValueError, match="in keys of another layer"):
        check.check()


def test_large_numbers_are_finite():
    check = FiniteCheck()
    for dtype in (torch.float16, torch.float32, torch.float64):
        check.watch("keys", torch.full((1, 1, 9, 4), torch.finfo(dtype).max, dtype=dtype))
    check.check()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_damaged_weights_are_named_at_conversion(number):
    plain = family("llama")
    with torch.no_grad():
        plain.model.layers[1].self_attn.k_proj.weight[0, 0] = number
    with pytest.raises(ValueError, match=r"not finite: model.layers.1.self_attn.k_proj.weight has NaN or infinity"):
        landmark.convert(plain, block_size=5)
    with torch.no_grad():
        plain.model.layers[1].self_attn.k_proj.weight[0, 0] = 0.0
        plain.model.norm.weight[:] = torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match=r"overflows torch\.float32"):
        landmark.convert(plain, block_size=5)


def test_the_switch_is_true_or_false():
    model = landmark.convert(family("llama"), block_size=5, retrieve=2)
    with pytest.raises(ValueError, match="allow_nonfinite is 'yes': give True or False"):
        landmark.LandmarkCache(model.config, allow_nonfinite="yes")  # type: ignore[arg-type]
