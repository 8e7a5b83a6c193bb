"""`landmark ask`: continue a prompt after a context or a text, and show where the model looked."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import OmitArgPrefixes, Positional, arg

from landmark.cli.options import MemoryOptions, load, model_of
from landmark.cli.output import print_escaped, tokens_read
from landmark.limits import FromOne, FromZero, Seed, Temperature
from landmark.settings import ReadingChanges, Verification

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from landmark.evaluation.reading import Reading
    from landmark.store.base import Traffic

SNIPPET = 160  # characters of an opened block


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """Continue a prompt after a context, or after a text that is read first, and show where the model looked."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Folder of a context, which is not changed, or a UTF-8 text of any length."""
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What is continued, word for word."""
    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one that read the context, for a text the one in the
    package."""
    max_new_tokens: FromOne = 100
    """Most tokens to generate."""
    temperature: Temperature = 0.0
    """0 takes the most likely token each time; above 0 samples."""
    seed: Seed = 0
    """Decides what is sampled."""
    sources: FromZero = 5
    """Opened blocks to show, the most read first."""
    json: bool = False
    """Print one JSON object instead of text."""
    verify: Verification = "landmarks"
    """What of a context is checked before it opens: docs/contexts.md."""
    reading: OmitArgPrefixes[ReadingChanges] = field(default_factory=ReadingChanges)
    """Default: as when the context was read; for a text, the model's own settings."""
    memory: OmitArgPrefixes[MemoryOptions] = field(default_factory=MemoryOptions)


class Result(NamedTuple):
    """An answer, the figures of its JSON object, the opened blocks, and ordinary tokens that are not read yet."""

    answer: str
    figures: dict[str, Any]
    sources: list[dict[str, Any]]
    unread: int = 0


def run(options: AskOptions) -> int:
    """Answer, and list what was opened."""
    if not options.prompt:
        raise ValueError("the prompt is empty: give the text that is to be continued")
    if not options.source.exists():
        raise ValueError(f"{options.source} does not exist: it is not a context, nor a text; name one of them")
    write = None if options.json else lambda piece: print_escaped(piece, end="", lines=True)
    result = (_ask_context if options.source.is_dir() else _ask_text)(options, write)
    figures = result.figures
    if options.json:
        print(json.dumps({"answer": result.answer, **figures, "sources": result.sources}))
        return 0
    print_escaped("")
    if figures["read_seconds"]:
        print_escaped(f"{figures['tokens_read']:,} tokens read in {figures['read_seconds']:.1f} s", to_stderr=True)
    print_escaped(f"answered from {figures['tokens_read']:,} tokens in {figures['seconds']:.2f} s", to_stderr=True)
    if result.unread:
        print_escaped(
            f"{result.unread:,} tokens more are not read yet: run landmark append {options.source}", to_stderr=True
        )
    for source in result.sources:
        place = f"characters {source['first']}:{source['last']}, block {source['block']}"
        print_escaped("")
        print_escaped(f"{source['document']}, {place}, weight {source['weight']:.3f}")
        print_escaped(f"  {' '.join(source['text'].split())[:SNIPPET]}")
    return 0


def _ask_context(options: AskOptions, write: Callable[[str], object] | None) -> Result:
    """Continues the prompt after a context."""
    import torch

    from landmark.contexts.context import Context

    folder = model_of(options.source, options.model)
    model, tokenizer = load(
        folder, lambda config: options.memory.check(config, options.source, **options.reading), options.source
    )
    context = Context.open(
        options.source, model, tokenizer, verify=options.verify, **options.reading, **options.memory.keywords()
    )
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    answer = context.generate(
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        sources=options.sources,
        write=write,
    )
    seconds = time.perf_counter() - started
    figures = _figures(context.tokens_read, len(answer.ids), 0.0, seconds, answer.traffic)
    sources = [asdict(source) for source in answer.sources]
    return Result(answer.text, figures, sources, context.tokens - context.tokens_read)


def _ask_text(options: AskOptions, write: Callable[[str], object] | None) -> Result:
    """Reads a text, and continues the prompt after it."""
    from landmark.data.text import read_text

    text = read_text(options.source)
    import torch

    from landmark.evaluation.reading import Reading
    from landmark.hf import LandmarkCache, read
    from landmark.hf.reader import TextTo, answer
    from landmark.hf.tokenizer import bos_tokens, encode
    from landmark.hf.trace import passages

    def reading_of(config: "PretrainedConfig") -> "Reading":
        options.memory.check(config, **options.reading)
        return Reading.of(config, **options.reading)

    model, tokenizer = load(options.model, reading_of)
    reading = reading_of(model.config)
    before = bos_tokens(tokenizer) + encode(tokenizer, text)
    prompt = encode(tokenizer, options.prompt, continues=True)
    whole = before + prompt
    reading.check_length(model.config, len(whole) + options.max_new_tokens)
    cache = LandmarkCache(model.config, **asdict(reading.settings), **options.memory.keywords())
    started = time.perf_counter()
    with tokens_read(f"reading {options.source.name}", len(before)) as progress:
        read(model, before.ids, cache, progress=progress)
    read_seconds = time.perf_counter() - started

    cache.start_trace()
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    new = answer(
        model,
        prompt.ids,
        cache,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        streamer=None if write is None else TextTo(tokenizer, write),
    )
    seconds = time.perf_counter() - started
    figures = _figures(len(before), len(new), read_seconds, seconds, cache.traffic)
    spans = (span for span in cache.trace().spans() if span.start < len(before))  # those of the prompt are left out
    spans = (replace(span, stop=min(span.stop, len(before))) for span in spans)
    opened = passages(spans, before, options.sources)
    sources = [{"document": str(options.source), **asdict(passage)} for passage in opened]
    return Result(str(tokenizer.decode(new, skip_special_tokens=True)), figures, sources)


def _figures(
    tokens_read: int, new_tokens: int, read_seconds: float, seconds: float, traffic: "Traffic"
) -> dict[str, Any]:
    """Figures of the JSON object."""
    return {
        "tokens_read": tokens_read,
        "new_tokens": new_tokens,
        "read_seconds": read_seconds,
        "seconds": seconds,
        "traffic": asdict(traffic),
    }
