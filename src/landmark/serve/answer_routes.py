"""The routes of OpenAI's protocol: chat completions, completions, models."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from landmark.serve.errors import Refusal, no_such_model
from landmark.serve.generation import Ended, Event, Failed, Generation
from landmark.serve.http import AsciiJSON, Here, Who, in_engine
from landmark.serve.keys import Caller
from landmark.serve.protocol import ChatRequest, CompletionRequest, GenerationRequest, ModelFields, ModelList
from landmark.serve.responses import EVENTS, AnswerForm
from landmark.serve.server import MODEL_CONTEXT, Server

router = APIRouter(prefix="/v1")
_POLL = 0.25  # seconds between two looks at whether the client is still there


@router.post("/chat/completions", responses=EVENTS)
async def chat_completions(request: Request, body: ChatRequest, caller: Who, server: Here) -> Response:
    """An answer to the last message of a conversation, which may be about a context."""
    form = _form(body, chat=True, logprobs=bool(body.logprobs))
    return await _answer(request, body, form, lambda emit: server.chat(caller, body, emit))


@router.post("/completions", responses=EVENTS)
async def completions(request: Request, body: CompletionRequest, caller: Who, server: Here) -> Response:
    """A continuation of a prompt, word for word, after a context if one is named."""
    form = _form(body, chat=False, logprobs=body.logprobs is not None)
    return await _answer(request, body, form, lambda emit: server.complete(caller, body, emit))


@router.get("/models")
async def models(caller: Who, server: Here) -> ModelList:
    """The model, and the model with each context that the caller may ask."""
    chat = server.prompts.no_chat is None
    return ModelList(data=[ModelFields(id=name, chat=chat) for name in await _model_names(server, caller)])


@router.get("/models/{name}")
async def model(name: str, caller: Who, server: Here) -> ModelFields:
    """One of these models."""
    names = await _model_names(server, caller)
    if name not in names:
        raise no_such_model(names)
    return ModelFields(id=name, chat=server.prompts.no_chat is None)


async def _model_names(server: Server, caller: Caller) -> list[str]:
    names = await in_engine(server, lambda: server.contexts.names(caller.name))
    return [server.name, *(f"{server.name}{MODEL_CONTEXT}{name}" for name in names)]


def _form(body: GenerationRequest, *, chat: bool, logprobs: bool) -> AnswerForm:
    context = body.model.partition(MODEL_CONTEXT)[2] or body.context
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return AnswerForm(chat=chat, model=body.model, context=context, logprobs=logprobs, include_usage=include_usage)


async def _answer(
    request: Request,
    body: GenerationRequest,
    form: AnswerForm,
    submit: Callable[[Callable[[Event], None]], Generation],
) -> Response:
    """The response to a request; its status is known when the engine has begun it."""
    listener, choices = Listener(request), body.n or 1
    listener.generation = submit(listener.emit)
    events = listener.events(await listener.first(), choices)
    if not body.stream:
        return AsciiJSON(await form.whole(events))

    async def text() -> AsyncIterator[str]:
        with suppress(Gone):  # nobody reads on
            for piece in form.opening(choices):
                yield piece
            async for piece in form.streamed(events):
                yield piece

    return StreamingResponse(text(), media_type="text/event-stream")


class Gone(Refusal):
    """The client went away."""

    def __init__(self) -> None:
        super().__init__(499, "the client went away")


class Listener:
    """Events of one generation, from the engine's thread; a client that goes away cancels it."""

    generation: Generation

    def __init__(self, request: Request) -> None:
        self._request = request
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()  # None where it is time to look at the client
        self._loop = asyncio.get_running_loop()
        self._look_later()

    def emit(self, event: Event) -> None:
        """Called by the engine's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def first(self) -> Event:
        """The first event; Refusal if the request fails before it begins."""
        event = await self._next()
        if isinstance(event, Failed):
            raise event.error
        return event

    async def events(self, first: Event, choices: int) -> AsyncIterator[Event]:
        """All events, up to the last choice's end or a failure."""
        event, left = first, choices
        try:
            while True:
                left -= isinstance(event, Ended)
                yield event
                if not left or isinstance(event, Failed):
                    return
                event = await self._next()
        finally:
            self.generation.cancel()

    async def _next(self) -> Event:
        try:
            while (event := await self._queue.get()) is None:
                if await self._request.is_disconnected():
                    raise Gone
                self._look_later()
            return event
        except BaseException:
            self.generation.cancel()
            raise

    def _look_later(self) -> None:
        """Looking costs more than an event, and so does a wait that may end without one."""
        self._loop.call_later(_POLL, self._queue.put_nowait, None)
