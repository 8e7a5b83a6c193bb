"""`landmark demo`: passkey retrieval from a whole book by the model in the package."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from landmark.cli.options import load
from landmark.cli.output import console as stdout_console
from landmark.cli.output import printable, tokens_read
from landmark.limits import Depth, Seed

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from landmark.evaluation.passkey import Prompt
    from landmark.evaluation.reading import Reading
    from landmark.hf import LandmarkCache

WRONG_ANSWER = 1
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Hide a passkey in a book, read the book through memory, ask for it. Exit code 0: right, 1: wrong."""

    seed: Seed = 0
    """Decides the passkey, and its depth unless given."""
    depth: Depth = None
    """Depth of the passkey, from 0, the start of the book, to 1, its end; default: random."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one in the package."""
    text: Path | None = None
    """UTF-8 text to hide the passkey in; default: the book in the package."""


def run(options: DemoOptions) -> int:
    """Retrieve one passkey, and show the blocks that were opened for it."""
    from landmark.assets import book_path
    from landmark.data.text import read_text

    book = read_text(options.text or book_path())
    import numpy as np

    from landmark.data.recall import passkey_question, random_key
    from landmark.evaluation.passkey import PasskeyPrompts, ask
    from landmark.evaluation.reading import Reading
    from landmark.hf.tokenizer import encode
    from landmark.process_memory import PeakMemory

    model, tokenizer = load(options.model, Reading.of)
    reading = Reading.of(model.config)
    keys = PasskeyPrompts(tokenizer, encode(tokenizer, book).ids)
    rng = np.random.default_rng(options.seed)
    key, depth = random_key(rng), rng.random() if options.depth is None else options.depth
    prompt = keys.hide(key, keys.haystack, depth)
    reading.check_length(model.config, len(prompt.text) + len(prompt.question) + len(key))
    console = stdout_console()
    console.print(f"A book of {len(keys.haystack):,} tokens; at {depth:.1%} of it stands: The pass key is {key}.")
    console.print(f"The model has learnt on windows of {model.config.max_position_embeddings} positions.\n")

    cache = reading.cache(model.config)
    assert cache is not None
    peak, started = PeakMemory(), time.perf_counter()
    with tokens_read("reading", len(prompt.text)) as progress:

        def look(tokens: int) -> None:
            peak.sample()
            progress(tokens)
            if cache.get_seq_length() == len(prompt.text):
                cache.start_trace()  # what is opened from here on is opened for the answer

        answered = ask(model, tokenizer, prompt, cache, chunk_size=reading.chunk_size, progress=look)
    seconds = time.perf_counter() - started
    peak.sample()
    right = answered == key
    console.print(printable(f"{passkey_question().strip()} {answered}"), markup=False, style="bold")
    console.print("right\n" if right else f"wrong, it is {key}\n", style="green" if right else "red")
    _show_opened(console, tokenizer, prompt, cache)
    console.print(f"read {len(prompt.text):,} tokens and answered in {seconds:.1f} s,", end=" ")
    console.print(f"{len(prompt.text) / seconds:,.0f} tokens/s; peak memory {peak.megabytes:,.0f} MB")
    _show_costs(console, model, reading, len(prompt.text), cache.nbytes)
    return 0 if right else WRONG_ANSWER


def _show_opened(
    console: "Console", tokenizer: "PreTrainedTokenizerBase", prompt: "Prompt", cache: "LandmarkCache"
) -> None:
    """Print the blocks that the question and the answer opened most, the passkey in them highlighted."""
    from rich.padding import Padding
    from rich.text import Text

    spans = cache.trace().spans()
    console.print(f"blocks opened most, of {len(spans)} opened at all:")
    for span in spans[:SHOWN]:
        states = span.start < prompt.stated.stop and prompt.stated.start < span.stop
        mark = "  <- the passkey" if states else ""
        console.print(f"  block {span.block}, tokens {span.start:,} to {span.stop:,}, weight {span.weight:.3f}{mark}")
        words = str(tokenizer.decode(prompt.text[span.start : span.stop])).split()
        text = Text(printable(" ".join(words)), style="dim")
        text.highlight_words([prompt.key], style="bold green not dim")
        console.print(Padding(text, (0, 0, 0, 4), expand=False))
    console.print()


def _show_costs(console: "Console", model: "PreTrainedModel", reading: "Reading", tokens: int, kept: int) -> None:
    """Print scores computed and bytes kept, and those of full attention over as many tokens."""
    from landmark.evaluation.reading import full_attention_costs, reading_scores

    full = full_attention_costs(model.config, tokens, model.dtype.itemsize)
    scores = reading_scores(model.config, reading, tokens)
    console.print(
        f"query-key scores while reading: {scores:.2e}; full attention: {full.scores:.2e},"
        f" {full.scores / scores:.0f} times as many",
        soft_wrap=True,
    )
    console.print(
        f"keys and values at the end: {kept / 1e6:,.0f} MB, a few blocks of them read per token;"
        f" full attention: {full.kv_bytes / 1e6:,.0f} MB, all read again for each new token",
        soft_wrap=True,
    )
