"""Answers in OpenAI's form: whole, or as server-sent events."""

import json
import time
from collections.abc import AsyncIterator, Iterable
from secrets import token_hex
from typing import Any

from landmark.serve.choice import TokenLog
from landmark.serve.errors import Refusal
from landmark.serve.generation import Began, Ended, Event, Failed, Grew
from landmark.serve.protocol import (
    AnswerFields,
    ErrorFields,
    ErrorResponse,
    SentenceFields,
    TokensCached,
    Usage,
)

DONE = "data: [DONE]\n\n"
# Of a route that answers whole or as events, for the description of the protocol.
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


def error_body(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's error object."""
    fields = ErrorFields(message=refusal.message, type=refusal.kind, param=refusal.param, code=refusal.code)
    return ErrorResponse(error=fields).model_dump()


def sse(value: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=True)}\n\n"


class AnswerForm:
    """How the answers to one request are written: a chat's or a completion's."""

    def __init__(self, *, chat: bool, model: str, context: str | None, logprobs: bool, include_usage: bool) -> None:
        self._chat = chat
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._context = context
        self._began = Began(0, 0)
        self._tokens = 0
        self._ended = 0
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    # Whole.

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """The response when all choices are finished; Refusal for a request that failed."""
        logs: dict[int, list[TokenLog]] = {}
        choices = []
        async for event in events:
            self._note(event)
            if isinstance(event, Grew) and event.piece.log is not None:
                logs.setdefault(event.index, []).append(event.piece.log)
            elif isinstance(event, Ended):
                choices.append(self._whole_choice(event, logs.get(event.index, [])))
            elif isinstance(event, Failed):
                raise event.error
        choices.sort(key=lambda choice: choice["index"])
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage()}

    def _whole_choice(self, ended: Ended, logs: list[TokenLog]) -> dict[str, Any]:
        text = {"message": {"role": "assistant", "content": ended.text}} if self._chat else {"text": ended.text}
        return {
            "index": ended.index,
            **text,
            "logprobs": self._logs(logs) if self._logprobs else None,
            "finish_reason": ended.reason,
            "landmark": self._extension(ended),
        }

    # As events.

    async def streamed(self, events: AsyncIterator[Event]) -> AsyncIterator[str]:
        """Server-sent events; a request that fails ends with an event that has an `error`."""
        async for event in events:
            self._note(event)
            if isinstance(event, Grew):
                yield self._chunk(event.index, event.piece.text, [event.piece.log] if event.piece.log else [])
            elif isinstance(event, Ended):
                yield self._chunk(event.index, "", [], event)
            elif isinstance(event, Failed):
                yield sse(error_body(event.error))
                return
        if self._include_usage:
            yield sse({**self._chunk_head(), "choices": [], "usage": self._usage()})
        yield DONE

    def opening(self, choices: int) -> Iterable[str]:
        """The first events of a chat: whose message it is."""
        if self._chat:
            for index in range(choices):
                delta = {"role": "assistant", "content": ""}
                choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
                yield sse({**self._chunk_head(), "choices": [choice]})

    def _chunk(self, index: int, text: str, logs: list[TokenLog], ended: Ended | None = None) -> str:
        part = {"delta": {"content": text} if text or not ended else {}} if self._chat else {"text": text}
        choice = {
            "index": index,
            **part,
            "logprobs": self._logs(logs) if logs else None,
            "finish_reason": ended.reason if ended else None,
        }
        if ended:
            choice["landmark"] = self._extension(ended)
        return sse({**self._chunk_head(), "choices": [choice]})

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}

    # Parts of both.

    def _note(self, event: Event) -> None:
        if isinstance(event, Began):
            self._began = event
        elif isinstance(event, Ended):
            self._tokens += event.tokens

    def _usage(self) -> dict[str, Any]:
        prompt = self._began.cached + self._began.prompt
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=self._tokens,
            total_tokens=prompt + self._tokens,
            prompt_tokens_details=TokensCached(cached_tokens=self._began.cached),
        ).model_dump()

    def _extension(self, ended: Ended) -> dict[str, Any]:
        sentences = None
        if ended.sentences is not None:
            sentences = [
                SentenceFields(first=first, last=last, sources=sources) for first, last, sources in ended.sentences
            ]
        return AnswerFields(
            context=self._context,
            tokens_read=self._began.cached,
            sources=ended.sources,
            sentences=sentences,
        ).model_dump()

    def _logs(self, logs: list[TokenLog]) -> dict[str, Any]:
        if self._chat:
            return {"content": [self._chat_log(log) for log in logs], "refusal": None}
        return {
            "tokens": [log.text for log in logs],
            "token_logprobs": [log.logprob for log in logs],
            "top_logprobs": [dict(log.top) for log in logs],
        }

    def _chat_log(self, log: TokenLog) -> dict[str, Any]:
        top = [_token(text, logprob) for text, logprob in log.top]
        return {**_token(log.text, log.logprob), "top_logprobs": top}


def _token(text: str, logprob: float) -> dict[str, Any]:
    """A token of a chat. It may be a part of a character, so that no bytes are given."""
    return {"token": text, "logprob": logprob, "bytes": None}
