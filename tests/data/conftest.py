"""A small text and a tokenizer trained on it."""

import random
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from landmark.data.tokenizer import train_tokenizer

# `chat_tokenizer` is a module of helpers beside the tests of the evaluation, not a package.
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

WORDS = "the a key pass remember what is of whale sea captain ship and or to said deep old white"


def prose(words: int) -> str:
    """Lines of random words and numbers."""
    rng = random.Random(0)
    picked = [rng.choice([*WORDS.split(), str(rng.randrange(1000))]) for _ in range(words)]
    return "\n".join(" ".join(picked[start : start + 9]) for start in range(0, words, 9)) + "\n"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(prose(3000))
    return train_tokenizer([str(folder / "text.txt")], 300, folder / "out")
