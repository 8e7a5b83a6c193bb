"""A tiny model configuration, a text and its tokenizer, and the options that train on them."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# `processes` is a module of helpers beside the tests, not a package.
sys.path.insert(0, str(Path(__file__).parent))

from landmark.data.tokenizer import train_tokenizer
from landmark.training.options import TrainOptions

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}

RECIPE = """
learning_rate = 0.01
warmup_steps = 2
micro_batches = 2

[[stage]]
steps = 4
window_positions = 48
batch_size = 3
gates = false

[[stage]]
steps = 4
window_positions = 192
batch_size = 2
recall_fraction = 0.5
questions = [1, 2]
"""


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    """A folder with text.txt, held_out.txt, tokenizer/, config.json and recipe.toml."""
    folder = tmp_path_factory.mktemp("material")
    rng = random.Random(0)
    words = "the key pass remember what is of whale sea captain ship said deep old white"
    for name in ("text", "held_out"):
        lines = [" ".join(rng.choices(words.split(), k=9)) + f" {rng.randrange(999)}" for _ in range(200)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    train_tokenizer([str(folder / "text.txt")], 300, folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def options(material, tmp_path) -> Callable[..., TrainOptions]:
    """Makes options of a small from-scratch training, with changes."""

    def make(**changes: object) -> TrainOptions:
        settings = {
            "texts": (str(material / "text.txt"),),
            "out": tmp_path / "run",
            "config": material / "config.json",
            "tokenizer": str(material / "tokenizer"),
            "recipe": material / "recipe.toml",
            "block_size": 7,
            "log_every": 1,
        }
        return TrainOptions(**(settings | changes))

    return make
