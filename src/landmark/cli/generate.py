"""`landmark generate`: read a text of any length, then continue a prompt after it."""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from landmark.cli.reading import load, tokens_read
from landmark.limits import FromOne, FromZero, Seed, Temperature
from landmark.settings import ReadingChanges

SNIPPET = 160


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Read a text of any length, continue a prompt after it, and show which blocks that opened."""

    file: Path
    """UTF-8 text to read."""
    prompt: str
    """What stands after the text and is continued, word for word."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; the one in the package when left out."""
    max_new_tokens: FromOne = 100
    """Most tokens to generate."""
    temperature: Temperature = 0.0
    """0 takes the most likely token each time; above 0 samples."""
    seed: Seed = 0
    """Decides what is sampled."""
    spans: FromZero = 5
    """Opened blocks to show, the most read first."""
    json: bool = False
    """Print one JSON object instead of text."""
    reading: OmitArgPrefixes[ReadingChanges] = field(default_factory=ReadingChanges)
    """How the text is read; default: the model's own settings."""


def run(options: GenerateOptions) -> int:
    """Read, answer, and list what was opened."""
    if not options.prompt:
        raise ValueError("the prompt is empty: say what is to be continued")
    from landmark.data.text import read_text

    text = read_text(options.file)
    import torch

    from landmark.evaluation.reading import Reading
    from landmark.hf import read
    from landmark.hf.reader import TextTo, answer
    from landmark.hf.tokenizer import bos_tokens, encode
    from landmark.hf.trace import passages

    def reading_of(config: Any) -> Reading:
        return Reading.of(config, **options.reading)

    model, tokenizer = load(options.model, reading_of)
    reading = reading_of(model.config)
    cache = reading.cache(model.config)
    assert cache is not None
    before = bos_tokens(tokenizer) + encode(tokenizer, text)
    prompt = encode(tokenizer, options.prompt, continues=True)
    whole = before + prompt
    reading.check_length(model.config, len(whole) + options.max_new_tokens)
    started = time.perf_counter()
    with tokens_read(f"reading {options.file.name}", len(before)) as progress:
        read(model, before.ids, cache, chunk_size=reading.chunk_size, progress=progress)
    read_seconds = time.perf_counter() - started

    cache.start_trace()
    torch.manual_seed(options.seed)
    streamer = None if options.json else TextTo(tokenizer, lambda piece: print(piece, end="", flush=True))
    new = answer(
        model,
        prompt.ids,
        cache,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        streamer=streamer,
    )
    opened = passages(cache.trace().spans(), whole, options.spans)
    if options.json:
        said = tokenizer.decode(new, skip_special_tokens=True)
        spans = [asdict(passage) for passage in opened]
        counts = {"tokens_read": len(before), "new_tokens": len(new), "read_seconds": read_seconds}
        print(json.dumps({"answer": said, **counts, "spans": spans}))
        return 0
    print(flush=True)
    print(f"{len(before):,} tokens read in {read_seconds:.1f} s", file=sys.stderr)
    for passage in opened:
        snippet = " ".join(passage.text.split())[:SNIPPET]
        print(
            f"\nblock {passage.block}, weight {passage.weight:.3f}, tokens {passage.start}:{passage.stop},"
            f" characters {passage.first}:{passage.last}\n  {snippet}"
        )
    return 0
