"""`landmark ask`: continue a prompt after a context or a text, and show where the model looked."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import Positional, arg

from landmark.cli.answering import AnswerOptions, answer_from_context, answer_from_text, check_asked
from landmark.cli.options import here
from landmark.cli.output import counted, print_escaped, print_sources, print_unread
from landmark.limits import FromZero

if TYPE_CHECKING:
    from landmark.hf import Span
    from landmark.store.base import Traffic


@dataclass(frozen=True, kw_only=True)
class AskOptions(AnswerOptions):
    """Continue a prompt after a context, or after a text that is read first, and show where the model looked."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Folder of a context, which is not changed, or a UTF-8 text of any length. A collection may lie on another file
    system: s3://bucket/library."""
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What is continued, word for word."""
    sources: FromZero = 5
    """Opened blocks to show, those first that the question asked for."""
    json: bool = False
    """Print one JSON object instead of text."""


class Result(NamedTuple):
    """An answer, the figures of its JSON object, the opened blocks, and ordinary tokens that are not read yet."""

    answer: str
    figures: dict[str, Any]
    sources: list[dict[str, Any]]
    unread: int = 0


def run(options: AskOptions) -> int:
    """Answer, and list what was opened."""
    check_asked(options.source, options.prompt)
    write = None if options.json else lambda piece: print_escaped(piece, end="", lines=True)
    options = replace(options, source=here(options.source))
    result = (_ask_context if options.source.is_dir() else _ask_text)(options, write)
    figures = result.figures
    if options.json:
        print(json.dumps({"answer": result.answer, **figures, "sources": result.sources}))
        return 0
    print_escaped("")
    read = counted(figures["tokens_read"], "token")
    if figures["read_seconds"]:
        print_escaped(f"{read} read in {figures['read_seconds']:.1f} s", to_stderr=True)
    print_escaped(f"answered from {read} in {figures['seconds']:.2f} s", to_stderr=True)
    if result.unread:
        print_unread(result.unread, options.source)
    print_sources(result.sources)
    return 0


def _ask_context(options: AskOptions, write: Callable[[str], object] | None) -> Result:
    """Continues the prompt after a context."""
    context, answer, seconds = answer_from_context(
        options, options.source, options.prompt, sources=options.sources, write=write
    )
    figures = figures_of(context.tokens_read, len(answer.ids), 0.0, seconds, answer.traffic)
    sources = [asdict(source) for source in answer.sources]
    return Result(answer.text, figures, sources, context.tokens - context.tokens_read)


def _ask_text(options: AskOptions, write: Callable[[str], object] | None) -> Result:
    """Reads a text, and continues the prompt after it."""
    found = answer_from_text(options, options.source, options.prompt, write=write)
    from landmark.contexts.documents import Source
    from landmark.hf.ranking import Ranking

    tokens = len(found.text)
    figures = figures_of(tokens, len(found.ids), found.read_seconds, found.seconds, found.cache.traffic)
    ranking = Ranking.after(found.model, found.tokenizer, found.after_text) if options.sources else Ranking()
    ranked = ranking.spans(found.cache.trace())
    spans = (replace(one, stop=min(one.stop, tokens)) for one in ranked if one.start < tokens)  # none of the prompt

    def source(span: "Span") -> Source:
        first, last = found.text.characters(span.start, span.stop)
        text = found.text.text[first:last]
        return Source(str(options.source), first, last, span.block, span.start, span.stop, span.weight, text)

    sources = [asdict(source(span)) for span in islice(spans, options.sources)]
    return Result(found.answer, figures, sources)


def figures_of(
    tokens_read: int, new_tokens: int, read_seconds: float, seconds: float, traffic: "Traffic"
) -> dict[str, Any]:
    """Figures of the JSON object of an answer."""
    return {
        "tokens_read": tokens_read,
        "new_tokens": new_tokens,
        "read_seconds": read_seconds,
        "seconds": seconds,
        "traffic": asdict(traffic),
    }
