"""What a server is made of: model, engine, contexts, keys, memory, limits; and the requests for its engine."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from landmark.contexts.context import Context
from landmark.contexts.documents import in_front
from landmark.files import bytes_in
from landmark.hf.decoding import compute_together
from landmark.hf.joined import why_apart
from landmark.hf.reader import end_tokens
from landmark.hf.rereading import check_reread, in_text_order, usual_reread
from landmark.hf.retrieval_heads import RetrievalHeads
from landmark.hf.trace import Span
from landmark.serve.admission import Admission
from landmark.serve.contexts import Contexts
from landmark.serve.engine import Engine
from landmark.serve.errors import Refusal, bad_request, no_such_model, over_quota
from landmark.serve.generation import Event, Generation, Grew, Prepared, Question
from landmark.serve.keys import LOCAL, Caller, Keys, Usage
from landmark.serve.memory import Reckoning
from landmark.serve.metrics import Metrics
from landmark.serve.prompts import Prompts
from landmark.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest
from landmark.settings import KvDtype, Verification
from landmark.store.base import Traffic

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("landmark.serve")
MODEL_CONTEXT = "@"  # between a model and a context in the name of a model


def check_name(name: str) -> None:
    """Raises ValueError for a name of the model under which clients could not ask it."""
    if not name or MODEL_CONTEXT in name:
        raise ValueError(f"name is {name!r}: give one without {MODEL_CONTEXT}, behind which clients name a context")


class Asked(NamedTuple):
    """The tokens `[N]` of a prompt, and the blocks of the context that it has in front of its question."""

    ids: "Tensor"
    again: Sequence[Span] = ()


@dataclass(frozen=True)
class Limits:
    """Bounds of the whole server: branches at once, requests that wait, seconds and tokens of an answer, bytes."""

    running: int = 8
    waiting: int = 32
    seconds: float = 300.0
    new_tokens: int = 4096
    prompt_tokens: int = 32768
    body_bytes: int = 16_000_000


@dataclass
class Server:
    """A server without its routes; implements `landmark.serve.reading.Accounts`.

    `keys` None lets everybody in, as the user named local. `memory` are the bytes that contexts and answers may take,
    by default a share of what is free. `options` are keywords of `landmark.Context.open`; blocks of contexts that
    clients make are kept in `kv_dtype`.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    data: Path | None = None
    given: Mapping[str, Path] = field(default_factory=dict)
    keys: Keys | None = None
    limits: Limits = field(default_factory=Limits)
    verify: Verification = "landmarks"
    options: dict[str, Any] = field(default_factory=dict)
    kv_dtype: KvDtype | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        together = self.limits.running > 1
        if together and (apart := why_apart(self.model)) is not None:
            together = False
            log.warning("answers are decoded in turns, not together: %s", apart)
        reckoning = Reckoning.of(self.model, self.options.get("host_budget"))
        budget = reckoning.of_answers(self.memory, reads=self.data is not None)
        self.admission = Admission(reckoning, budget, self._open, lambda: self.engine)
        self.engine = Engine(
            most_rows=self.limits.running,
            most_waiting=self.limits.waiting,
            together=partial(compute_together, self.model) if together else None,
            fits=self.admission.fits,
        )
        folder = None if self.data is None else self.data / "contexts"
        opened = self.admission.opened
        self.contexts = Contexts(
            folder, self.given, self.model, self.tokenizer, self.engine, opened, self.options, self.kv_dtype, self
        )
        self.usage = Usage(None if self.data is None else self.data / "usage.json")
        self.prompts = Prompts(self.tokenizer, self.limits.prompt_tokens)
        self.metrics = Metrics()
        self._watch()

    def _watch(self) -> None:
        """Names the states that metrics show."""
        watch, engine = self.metrics.watch, self.engine
        watch("landmark_disk_bytes", "Bytes of the contexts of clients", self._disk_bytes)
        watch("landmark_running_requests", "Requests that take turns", lambda: len(engine.running))
        watch(
            "landmark_decodes_together",
            "1 where rows that decode share a forward, 0 where they take turns",
            lambda: engine.together is not None,
        )
        watch("landmark_waiting_requests", "Requests that wait", lambda: len(engine.waiting))
        watch("landmark_reading_jobs", "Reading jobs to be done", lambda: len(engine.reading))
        watch("landmark_reckoned_memory_bytes", "Memory of open contexts and answers", lambda: self.admission.nbytes)

    def _disk_bytes(self) -> int:
        return 0 if self.contexts.folder is None else bytes_in([self.contexts.folder])

    def _open(self, path: Path) -> Context:
        return Context.open(path, self.model, self.tokenizer, verify=self.verify, **self.options)

    def start(self) -> None:
        """Opens the contexts it was given, takes up jobs, starts the engine; ValueError for what cannot be opened."""
        for given in self.contexts.given.values():
            try:
                context = self.admission.opened.get(given.path, 0)
            except Refusal as error:
                raise ValueError(f"{given.path}: {error.message}; give more --memory") from error
            if context.tokens_read < context.tokens:
                raise ValueError(f"{given.path} has documents that are not read yet: run landmark append {given.path}")
        self.contexts.resume()
        self.engine.start()

    def stop(self, grace: float) -> None:
        """Lets answers finish for `grace` seconds, pauses reading, and keeps what was used."""
        self.engine.stop(grace)
        self.usage.save()
        self.contexts.close()

    def caller(self, authorization: str | None) -> Caller:
        """Whom a request comes from, by its header; Refusal for none who may come in."""
        if self.keys is None:
            return Caller(LOCAL)
        scheme, _, key = (authorization or "").partition(" ")
        caller = self.keys.caller(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise Refusal(
                401, "give a valid API key as a bearer token", kind="authentication_error", code="invalid_api_key"
            )
        return caller

    def check_room(self, caller: Caller, *, new_context: bool = False) -> None:
        """Refusal for a caller that has as many contexts, bytes or tokens as its quota allows."""
        self.usage.check(caller)
        quota = caller.quota
        own = sum(record.owner == caller.name for record in self.contexts.records.values())
        if new_context and quota.contexts is not None and own >= quota.contexts:
            raise over_quota(f"contexts, at most {quota.contexts}")
        if quota.bytes is not None and self.contexts.bytes_of(caller.name) >= quota.bytes:
            raise over_quota(f"bytes of contexts, at most {quota.bytes:,}")

    def check_reading(self, owner: str) -> None:
        """Refusal for an owner whose contexts outgrow the quota while one is read."""
        caller = self._by_name(owner)
        self.usage.check(caller)
        most = caller.quota.bytes
        if most is not None and self.contexts.bytes_of(owner) > most:
            raise over_quota(f"bytes of contexts, at most {most:,}")

    def count_read(self, owner: str, tokens: int) -> None:
        """Counts tokens that a job read."""
        self.metrics.tokens.labels("read").inc(tokens)
        self.usage.add(owner, tokens)

    def _by_name(self, owner: str) -> Caller:
        return Caller(owner) if self.keys is None else self.keys.named(owner)

    # Asking.

    def chat(self, caller: Caller, request: ChatRequest, emit: Callable[[Event], None]) -> Generation:
        """Lets a conversation wait for its answer; Refusal for what cannot be honoured."""
        if request.top_logprobs is not None and not request.logprobs:
            raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
        if request.max_tokens is not None and request.max_completion_tokens is not None:
            raise bad_request("give max_completion_tokens or max_tokens, not both", "max_tokens")
        most = request.max_completion_tokens or request.max_tokens

        def asked(context: Context | None) -> Asked:
            if context is None or not context.tokens_read:
                if request.reread:
                    raise bad_request(f"reread is {request.reread}, and no text of a context is asked", "reread")
                return Asked(self.prompts.conversation(request.messages, after_text=False))
            ids = self.prompts.conversation(request.messages, after_text=True)  # refuses before anything is searched
            spans = self._best(context, request.messages[-1].text, request.reread)
            if not spans:
                return Asked(ids)
            passages = in_front(context.passages(in_text_order(spans), len(spans)))
            return Asked(self.prompts.with_passages(request.messages, passages), spans)

        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        return self._submit(caller, request, emit, asked, most, logprobs, self.prompts.chat_end)

    def complete(self, caller: Caller, request: CompletionRequest, emit: Callable[[Event], None]) -> Generation:
        """Lets a prompt wait for its continuation; Refusal for what cannot be honoured."""

        def asked(context: Context | None) -> Asked:
            after_text = context is not None and context.tokens_read > 0
            return Asked(self.prompts.continuation(request.prompt, after_text=after_text))

        return self._submit(caller, request, emit, asked, request.max_tokens, request.logprobs, None)

    def _best(self, context: Context, question: str, count: int | None) -> list[Span]:
        """The blocks that rank highest for a question, found by the engine's thread; Refusal for too many."""
        count = usual_reread(self.model.config, context.cache) if count is None else count
        if not count:
            return []
        try:
            check_reread(count, context.cache)
            RetrievalHeads.of_model(self.model.config)
        except ValueError as error:
            raise bad_request(str(error), "reread") from error
        return self.engine.call(lambda: context.best_blocks(question, count)).result()

    def _submit(
        self,
        caller: Caller,
        request: GenerationRequest,
        emit: Callable[[Event], None],
        asked: "Callable[[Context | None], Asked]",
        most: int | None,
        logprobs: int | None,
        end: int | None,
    ) -> Generation:
        name = self._context_name(request)
        self.usage.check(caller)
        question = self._question(request, most, logprobs, end)

        def opened() -> Context | None:
            return None if name is None else self.contexts.asked(caller.name, name)

        def prepared(context: Context | None) -> Prepared:
            ids, again = asked(context)
            nbytes = self.admission.of_answers(question.choices, len(ids) + question.most_tokens, context)
            return Prepared(ids, nbytes, again)

        def count(cached: int, prompt: int, completion: int, traffic: Traffic) -> None:
            self.metrics.count_tokens(cached, prompt, completion)
            self.metrics.count_blocks(traffic)
            self.usage.add(caller.name, prompt + completion)

        generation = Generation(
            caller.name,
            self.model,
            self.tokenizer,
            question,
            opened,
            prepared,
            Timed(emit, self.metrics),
            count,
            self.admission.opened.give_up,
            time.monotonic() + self.limits.seconds,
        )
        self.engine.submit(generation)
        return generation

    def _question(
        self, request: GenerationRequest, most: int | None, logprobs: int | None, end: int | None
    ) -> Question:
        if request.stream_options is not None and not request.stream:
            raise bad_request("stream_options needs stream to be true", "stream_options")
        question = Question(
            most_tokens=self._most_tokens(most),
            temperature=_temperature(request.temperature),
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            choices=request.n or 1,
            stops=request.stops,
            logprobs=logprobs,
            sources=request.sources,
            sentences=request.sentences,
            ends=end_tokens(self.model, end),
        )
        if question.choices > self.limits.running:
            raise bad_request(f"n is {question.choices}: this server gives at most {self.limits.running}", "n")
        return question

    def _context_name(self, request: GenerationRequest) -> str | None:
        """The context that a request names, in its model or by itself; Refusal for another model."""
        model, at, context = request.model.partition(MODEL_CONTEXT)
        if model != self.name or (at and not context):
            raise no_such_model([self.name])
        if at and request.context is not None and request.context != context:
            raise bad_request("model and context name two contexts: name one", "context")
        return context if at else request.context

    def _most_tokens(self, most: int | None) -> int:
        if most is not None and most > self.limits.new_tokens:
            raise bad_request(f"this server generates at most {self.limits.new_tokens} tokens", "max_tokens")
        return min(200, self.limits.new_tokens) if most is None else most


def _temperature(given: float | None) -> float:
    if given is None or given == 0:
        return 0.0
    if given < 0.001:
        raise bad_request("temperature is 0, or 0.001 and more", "temperature")
    return given


class Timed:
    """Passes events on, and notes the time between tokens."""

    def __init__(self, emit: Callable[[Event], None], metrics: Metrics) -> None:
        self._emit = emit
        self._metrics = metrics
        self._arrived = time.monotonic()
        self._last: dict[int, float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Grew):
            now = time.monotonic()
            last = self._last.get(event.index)
            if last is not None:
                self._metrics.next.observe(now - last)
            elif not self._last:
                self._metrics.first.observe(now - self._arrived)
            self._last[event.index] = now
        self._emit(event)
