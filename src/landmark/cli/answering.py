"""Answers after a context or a text: what `landmark ask`, `landmark chat` and `landmark view` have in common."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tyro.conf import OmitArgPrefixes

from landmark.cli.options import MemoryOptions, NumberOptions, load, model_of, open_to_ask
from landmark.cli.output import tokens_read
from landmark.limits import MaybeFromOne, Seed, Temperature
from landmark.settings import ReadingChanges, Verification
from landmark.urls import path_of, url_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from landmark.contexts.context import Answer, Context
    from landmark.evaluation.reading import Reading
    from landmark.hf import LandmarkCache
    from landmark.hf.tokenizer import EncodedText

_LINE = 100  # most tokens of a line
_FIRST_LINE = re.compile(r"\s*\S.*?(?=\r?\n)")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The model, how it reads, and how it continues a prompt."""

    model: Path | None = None
    """Folder of a converted model with its tokenizer; default: the one that read the context, for a text the one in the
    package."""
    max_new_tokens: MaybeFromOne = None
    """Most tokens to generate, over ends of lines. Default: to the end of the first line, 100 at most."""
    temperature: Temperature = 0.0
    """0 takes the most likely token each time; above 0 samples."""
    seed: Seed = 0
    """Decides what is sampled."""
    verify: Verification | None = None
    """What of a context is checked before it opens (docs/contexts.md). Default: its landmarks."""
    reading: OmitArgPrefixes[ReadingChanges] = field(default_factory=ReadingChanges)
    """Default: as when the context was read; for a text, the model's own settings."""
    memory: OmitArgPrefixes[MemoryOptions] = field(default_factory=MemoryOptions)
    numbers: OmitArgPrefixes[NumberOptions] = field(default_factory=NumberOptions)

    def keywords(self) -> dict[str, Any]:
        """Keywords of `LandmarkCache` and `Context`: how it reads, and its memory of blocks."""
        return {**self.reading, **self.memory.keywords()}


@dataclass
class Continuation:
    """How far a prompt is continued: `most` tokens, or to the end of a line.

    A model that was never taught to end an answer goes on with whatever may stand in a text.
    """

    most: int | None
    write: Callable[[str], object] | None = None
    """Gets the text that belongs to the answer, piece by piece."""
    _text: str = ""

    @property
    def max_new_tokens(self) -> int:
        return _LINE if self.most is None else self.most

    def take(self, piece: str) -> None:
        """Takes the next piece of what is generated."""
        before = self.of(self._text)
        self._text += piece
        if self.write is not None:
            self.write(self.of(self._text)[len(before) :])

    def ended(self) -> bool:
        """Whether the answer is whole before there are so many tokens."""
        return self.of(self._text) != self._text

    def of(self, text: str) -> str:
        """The part of a generated text that is the answer: to the end of the first line that is not blank."""
        if self.most is not None:
            return text
        line = _FIRST_LINE.match(text)
        return text if line is None else line[0]


class FromContext(NamedTuple):
    """An answer after a context, and the seconds that it took."""

    context: "Context"
    answer: "Answer"
    seconds: float


class FromText(NamedTuple):
    """Tokens `ids` that continue a text and a prompt, the `cache` that traced them, and the seconds of both parts.

    `answer` is their text, as far as it is the answer; `after_text` is the cache before the prompt.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    text: "EncodedText"
    prompt: "EncodedText"
    ids: list[int]
    answer: str
    cache: "LandmarkCache"
    after_text: "LandmarkCache"
    read_seconds: float
    seconds: float


def check_asked(source: Path, prompt: str) -> None:
    """Raises ValueError for an empty prompt, and where there is no source."""
    if not prompt:
        raise ValueError("the prompt is empty: give the text that is to be continued")
    if url_of(source) is None and not path_of(source).exists():
        raise ValueError(f"{source} does not exist: it is not a context, nor a text; name one of them")


def answer_from_context(
    options: AnswerOptions,
    path: Path,
    prompt: str,
    *,
    sources: int = 0,
    write: Callable[[str], object] | None = None,
) -> FromContext:
    """Continues the prompt after a context."""
    import torch

    folder = model_of(path, options.model)
    model, tokenizer = load(
        folder, lambda config: options.memory.check(config, path, **options.reading), path, numbers=options.numbers
    )
    context = open_to_ask(path, model, tokenizer, options.verify or "landmarks", **options.keywords())
    torch.manual_seed(options.seed)
    going = Continuation(options.max_new_tokens, write)
    started = time.perf_counter()
    answer = context.generate(
        prompt,
        max_new_tokens=going.max_new_tokens,
        temperature=options.temperature,
        sources=sources,
        write=going.take,
        stop=going.ended,
    )
    return FromContext(context, replace(answer, text=going.of(answer.text)), time.perf_counter() - started)


def answer_from_text(
    options: AnswerOptions, path: Path, prompt: str, *, write: Callable[[str], object] | None = None
) -> FromText:
    """Reads a text, and continues the prompt after it."""
    from landmark.data.text import read_text

    if options.verify is not None:
        raise ValueError(f"verify is {options.verify}, of a context, and {path} is a text: leave it out")
    text = read_text(path)
    import torch

    from landmark.evaluation.reading import Reading
    from landmark.hf import LandmarkCache, read
    from landmark.hf.reader import TextTo, answer
    from landmark.hf.tokenizer import bos_tokens, encode

    def reading_of(config: "PretrainedConfig") -> "Reading":
        options.memory.check(config, **options.reading)
        return Reading.of(config, **options.reading)

    model, tokenizer = load(options.model, reading_of, numbers=options.numbers)
    reading = reading_of(model.config)
    before = bos_tokens(tokenizer) + encode(tokenizer, text)
    asked = encode(tokenizer, prompt, continues=True)
    going = Continuation(options.max_new_tokens, write)
    reading.check_length(model.config, len(before) + len(asked) + going.max_new_tokens)
    cache = LandmarkCache(model.config, **asdict(reading.settings), **options.memory.keywords())
    started = time.perf_counter()
    with tokens_read(f"reading {path.name}", len(before)) as progress:
        read(model, before.ids, cache, progress=progress)
    read_seconds = time.perf_counter() - started

    after_text = cache.fork()
    cache.start_trace()
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    new = answer(
        model,
        asked.ids,
        cache,
        max_new_tokens=going.max_new_tokens,
        temperature=options.temperature,
        streamer=TextTo(tokenizer, going.take),
        stop=going.ended,
    )
    seconds = time.perf_counter() - started
    said = going.of(str(tokenizer.decode(new, skip_special_tokens=True)))
    return FromText(model, tokenizer, before, asked, new, said, cache, after_text, read_seconds, seconds)
