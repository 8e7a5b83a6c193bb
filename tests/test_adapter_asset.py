"""The adapter that comes with the package, without the weights of its model."""

import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import landmark
from landmark.assets import adapter_path
from landmark.hf.adapter_file import FILE, read_adapter


def test_the_adapter_says_what_it_belongs_to_and_is_small():
    file = adapter_path() / FILE
    adapter = read_adapter(file)
    assert file.stat().st_size < 12e6
    assert adapter.settings.block_size == 63
    assert adapter.config["num_hidden_layers"] == 30
    assert {matrix.dtype for pair in adapter.matrices.values() for matrix in pair} == {torch.bfloat16}


def test_a_model_of_that_shape_with_weights_of_its_own_is_refused():
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    shape |= {"num_key_value_heads": 3, "head_dim": 64, "vocab_size": 64, "max_position_embeddings": 8192}
    shape |= {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "rms_norm_eps": 1e-5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    with pytest.raises(ValueError, match="other weights"):
        landmark.load_adapter(model, adapter_path())
