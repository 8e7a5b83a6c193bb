"""`landmark train` and `landmark tokenizer train`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from landmark.cli.output import print_escaped
from landmark.limits import OutFolder, Range
from landmark.training.options import TrainOptions


def run(options: TrainOptions) -> int:
    """Train, and print where the model is."""
    from landmark.data.text import STDIN

    if STDIN in (*options.texts, *options.validation):
        raise ValueError("a training reads its texts again when it resumes: name files, not - for standard input")
    from landmark.training.run import train  # loads transformers

    final = train(options)
    print_escaped(f"the trained model is in {final}", to_stderr=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """Train a tokenizer in which every text round-trips and every digit is a token of its own."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")] = ()
    """Texts to train on: files, or the other sources that `landmark train --texts` takes."""

    out: Annotated[Path, OutFolder()]
    """Folder to write the tokenizer to."""

    vocab_size: Annotated[int, Range(1, 10**7)] = 4096
    """Number of tokens. A converted model has one row more, for the landmark."""


def run_tokenizer(options: TokenizerOptions) -> int:
    """Train the tokenizer, and print where it is."""
    if not options.texts:
        raise ValueError("there is nothing to train on: name at least one file")
    from landmark.data.tokenizer import train_tokenizer

    train_tokenizer(options.texts, options.vocab_size, options.out, show_progress=sys.stderr.isatty())
    print_escaped(f"a tokenizer of {options.vocab_size} tokens is in {options.out}", to_stderr=True)
    return 0
