"""The adapter that comes with the package, without the weights of its model."""

import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import landmark
from landmark.assets import adapter_path
from landmark.hf.serialization import FILE, _read


def test_the_adapter_says_what_it_belongs_to_and_is_small():
    file = adapter_path() / FILE
    tensors, told = _read(file)
    assert file.stat().st_size < 12e6
    assert told["settings"]["block_size"] == 63
    assert told["config"]["num_hidden_layers"] == 30
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_a_model_of_that_shape_with_weights_of_its_own_is_refused():
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    shape |= {"num_key_value_heads": 3, "head_dim": 64, "vocab_size": 64, "max_position_embeddings": 8192}
    shape |= {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "rms_norm_eps": 1e-5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    with pytest.raises(ValueError, match="other weights"):
        landmark.load_adapter(model, adapter_path())
