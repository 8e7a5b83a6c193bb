"""A request for an answer: what it asks, and how it runs in the engine."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from landmark.contexts.context import Context
from landmark.contexts.disk import Damage
from landmark.contexts.documents import Source, marked_reread
from landmark.hf import LandmarkCache
from landmark.hf.decoding import Decoding, Sampling
from landmark.hf.rereading import read_first
from landmark.hf.trace import Span, Trace
from landmark.serve.choice import Choice, Piece
from landmark.serve.errors import Refusal
from landmark.store.base import Traffic

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Began:
    """The request runs: tokens of its context, and of its prompt."""

    cached: int
    prompt: int


@dataclass(frozen=True)
class Grew:
    """A choice has another piece of text."""

    index: int
    piece: Piece


@dataclass(frozen=True)
class Ended:
    """A choice is finished: why, its whole text, its tokens, and what was read for it and for its sentences."""

    index: int
    reason: str
    text: str
    tokens: int
    sources: list[Source]
    sentences: list[tuple[int, int, list[Source]]] | None


@dataclass(frozen=True)
class Failed:
    """The request ends with an error."""

    error: Refusal


Event = Began | Grew | Ended | Failed


@dataclass(frozen=True)
class Prepared:
    """What an answer needs: the prompt's tokens, and bytes of memory.

    `again` are the blocks of the context that the prompt has in front of its question.
    """

    ids: Tensor
    nbytes: int
    again: Sequence[Span]


@dataclass(frozen=True)
class Question:
    """What is asked, but for the prompt."""

    most_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    choices: int
    stops: list[str]
    logprobs: int | None
    sources: int
    sentences: bool
    ends: list[int]


@dataclass(eq=False)
class Generation:
    """Implements `landmark.serve.engine.Work`. `opening` gives the context that is asked, `preparing` what it needs.

    `emit` gets its events in the engine's thread; `count`, once, at its end, the tokens that were cached, read and
    generated, and the traffic of blocks; `give_up` the folder of a context in which damage was found. After `deadline`,
    a time of `time.monotonic`, it fails; after `cancel` it ends without a word.
    """

    owner: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    question: Question
    opening: Callable[[], Context | None]
    preparing: Callable[[Context | None], Prepared]
    emit: Callable[[Event], None]
    count: Callable[[int, int, int, Traffic], None]
    give_up: Callable[[Path], None]
    deadline: float
    cancelled: bool = False
    nbytes: int = 0
    _context: Context | None = None
    _ids: Tensor | None = None
    _again: Sequence[Span] = ()
    _choices: list[Choice] = field(default_factory=list)
    _finished: set[int] = field(default_factory=set)
    _seed: int = 0  # of the first choice, one more for each of the others
    _first: int = 0  # number of the answer's first token
    _prompt: int = 0

    @property
    def rows(self) -> int:
        return self.question.choices

    def cancel(self) -> None:
        """Ends it before its next forward."""
        self.cancelled = True

    @property
    def over(self) -> bool:
        if not self.cancelled and time.monotonic() > self.deadline:
            self.fail(Refusal(504, "the answer took longer than the server allows", kind="server_error"))
        return self.cancelled

    def prepare(self) -> None:
        if not self.cancelled:
            self._context = self.opening()  # known to `fail` when damage is found in it
            made = self.preparing(self._context)
            self._ids, self.nbytes, self._again = made.ids, made.nbytes, made.again

    def begin(self) -> None:
        context, ids = self._context, self._ids
        assert ids is not None, "a request begins when it is prepared"
        if context is not None:
            context.check()
        self._prompt, cached = len(ids), context.tokens_read if context is not None else 0
        self._first = cached + len(ids)
        self._seed = secrets.randbits(32) if self.question.seed is None else self.question.seed
        self._choices = [self._choice(self._first_decoding(ids))]
        self.emit(Began(cached, len(ids)))

    def _first_decoding(self, ids: Tensor) -> Decoding:
        question, context = self.question, self._context
        cache = LandmarkCache(self.model.config) if context is None else context.cache.fork()
        cache.start_trace()
        return Decoding(
            self.model,
            cache,
            ids,
            max_new_tokens=question.most_tokens,
            sampling=Sampling(question.temperature, question.top_p, self._seed),
            ends=question.ends,
        )

    def _choice(self, decoding: Decoding) -> Choice:
        return Choice(decoding, self.tokenizer, stops=self.question.stops, logprobs=self.question.logprobs)

    def _other_choices(self) -> list[Choice]:
        """The choices behind the first, which has read the prompt for all."""
        first = self._choices[0].decoding
        return [self._choice(first.branch((self._seed + index) % 2**32)) for index in range(1, self.rows)]

    @property
    def decoding(self) -> list[Decoding]:
        decodings = [x.decoding for index, x in enumerate(self._choices) if index not in self._finished]
        return [decoding for decoding in decodings if decoding.decodes]

    def step(self) -> bool:
        for index, choice in enumerate(self._choices):  # longer, once the prompt is read
            if index in self._finished or self.cancelled:
                continue
            piece = choice.step()
            if piece is not None and len(self._choices) < self.rows:
                self._choices += self._other_choices()
            if piece is not None:
                self.emit(Grew(index, piece))
            if choice.finish_reason is not None:
                self._finished.add(index)
                self.emit(self._ended(index, choice, choice.finish_reason))
        return len(self._finished) < self.rows

    def _ended(self, index: int, choice: Choice, reason: str) -> Ended:
        sentences = None
        if self.question.sentences:
            found = choice.sentences(self._first)
            sentences = [(one.first, one.last, self._passages(one.trace)) for one in found]
        tokens = len(choice.decoding.ids)
        return Ended(index, reason, choice.text, tokens, self._passages(choice.trace(), self._again), sentences)

    def _passages(self, trace: Trace, first: Sequence[Span] = ()) -> list[Source]:
        """The blocks that come `first`, and then others that were opened, as many as were asked for."""
        context, limit = self._context, self.question.sources
        if context is None or not context.tokens_read or not limit:
            return []
        found = context.passages(read_first(first, context.ranked(trace)), len(first) + limit)
        return marked_reread(found, self._again)

    def fail(self, error: BaseException) -> None:
        if isinstance(error, Damage) and self._context is not None:
            self.give_up(self._context.path)  # opening it again mends a copy of what lies elsewhere
        if not self.cancelled:
            self.cancelled = True
            self.emit(Failed(refusal_of(error)))

    def close(self) -> None:
        decodings = [choice.decoding for choice in self._choices]
        traffic = sum((decoding.cache.traffic for decoding in decodings), Traffic())
        new = sum(len(decoding.ids) for decoding in decodings)
        self.count(self._first - self._prompt, self._prompt * bool(decodings), new, traffic)
        self._choices, self._context, self._ids = [], None, None


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told: nothing of the server's files."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Damage):
        return Refusal(500, "the context is damaged; its server's log names the place", kind="server_error")
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
        return Refusal(503, f"the server's disk failed ({reason})", kind="server_error", retry_after=30)
    return Refusal(500, "the server could not answer; its log says why", kind="server_error")
