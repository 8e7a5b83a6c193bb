"""A made-up book of sentences in the words of the tiny tokenizer."""

import numpy as np
from tiny_reader import WORDS


def book(words: int = 4000, seed: int = 0) -> str:
    """Sentences of 4 to 20 words in paragraphs, `words` words in all."""
    rng = np.random.default_rng(seed)
    vocabulary = [word for word in WORDS.split() if word.isalpha()]
    text, left = [], words
    while left > 0:
        length = int(rng.integers(4, 21))
        text.append(" ".join(rng.choice(vocabulary, length)).capitalize() + str(rng.choice([". ", "! ", ".\n\n"])))
        left -= length
    return "".join(text)
