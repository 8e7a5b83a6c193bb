"""A tiny random model with a tokenizer of its own, saved as `landmark train` saves them."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import landmark
from landmark.data.tokenizer import train_tokenizer

BLOCK_SIZE, TRAINED = 5, 256
WORDS = "the sea was calm and jim looked at it for a long while before he spoke of keys and ships 0123456789 . "
TEXT = WORDS * 40
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": TRAINED,
    "eos_token_id": None,
    "bos_token_id": None,
}
# Its special tokens are those of `train_tokenizer`.
CHAT_TEMPLATE = (
    "{% for m in messages %}<pad>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<pad>assistant\n{% endif %}"
)


def save_chat(folder: Path) -> Path:
    """The same, with a chat template."""
    model_folder = save(folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model_folder)
    return model_folder


def save(folder: Path) -> Path:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    model_folder = folder / "model"
    tokenizer = train_tokenizer([str(text)], 280, model_folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=tokenizer.get_vocab_size(), **CONFIG)
    model = AutoModelForCausalLM.from_config(config)
    # Random weights of the usual size predict nothing in particular; larger ones make wrong reading show.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    landmark.convert(model, block_size=BLOCK_SIZE, retrieve=2, local_blocks=1).save_pretrained(model_folder)
    return model_folder
