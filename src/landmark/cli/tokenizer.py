"""`landmark tokenizer train`: train a byte-level BPE tokenizer on texts."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from landmark.limits import OutFolder, Range


@dataclass(frozen=True)
class TokenizerOptions:
    """Train a tokenizer in which every text round-trips and every digit is a token of its own."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Texts to train on: files, or the other sources that `landmark train --texts` takes."""

    out: Annotated[Path, OutFolder()]
    """Folder to write the tokenizer to."""

    vocab_size: Annotated[int, Range(1, 10**7)] = 4096
    """Number of tokens. A converted model has one row more, for the landmark."""


def run(options: TokenizerOptions) -> int:
    """Train the tokenizer, and say where it is."""
    from landmark.data.tokenizer import train_tokenizer

    train_tokenizer(options.texts, options.vocab_size, options.out, show_progress=sys.stderr.isatty())
    print(f"a tokenizer of {options.vocab_size} tokens is in {options.out}", file=sys.stderr)
    return 0
