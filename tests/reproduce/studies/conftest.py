"""A tiny chat model before and after its conversion, with a tokenizer of bytes."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import landmark
from reproduce.studies.smollm2_models import Pair

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny(block_size: int) -> Pair:
    """Random weights; texts shorter than `block_size` are the same to both models."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    original = LlamaForCausalLM(config).eval()
    converted = landmark.convert(copy.deepcopy(original), block_size=block_size, retrieve=2, trained_tokens=1)
    return Pair(original, converted, tokenizer)


@pytest.fixture(scope="session")
def pair() -> Pair:
    """Blocks of 7: in all but the shortest texts there are landmarks."""
    return tiny(7)


@pytest.fixture(scope="session")
def same_pair() -> Pair:
    """Blocks that no text of these tests fills, so that conversion changes nothing."""
    return tiny(200)
