"""The tokens of a request: a prompt that is continued, or messages in the chat template of the model."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from landmark.contexts.chat import NO_CHAT, SEPARATOR
from landmark.data.chat import ChatFormat
from landmark.data.encoder import TextEncoder
from landmark.data.text import PIECE_CHARACTERS
from landmark.hf.tokenizer import bos_tokens, encode, text_encoder
from landmark.serve.errors import Refusal, bad_request
from landmark.serve.protocol import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompts:
    """Encodes requests as `landmark.Context.generate` and `landmark.Chat` encode theirs.

    Refusal for prompts of more than `most_tokens` tokens, before all of a very long text is encoded.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", most_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._most = most_tokens
        backend: Any = tokenizer.backend_tokenizer
        self._templates, self._texts = TextEncoder(backend, template=True), text_encoder(tokenizer)
        try:
            ChatFormat.of(tokenizer, NO_CHAT)
            self.no_chat = None
        except ValueError as error:
            self.no_chat = str(error)

    @property
    def chat_end(self) -> int | None:
        """The token that ends an answer in a conversation."""
        end: Any = self._tokenizer.eos_token_id
        return end

    def continuation(self, prompt: str, *, after_text: bool) -> Tensor:
        """Tokens of a prompt: after the text of a context, or as the beginning of a text."""
        self._check_length([prompt])
        asked = encode(self._tokenizer, prompt, continues=after_text)
        return self._checked(asked.ids if after_text else (bos_tokens(self._tokenizer) + asked).ids)

    def conversation(self, messages: Sequence[Message], *, after_text: bool) -> Tensor:
        """Tokens of messages up to the beginning of the reply; Refusal for messages that the template does not take.

        After the text of a context, which is the beginning of the user's first message, the template's opening is left
        out. A system message then comes between the text and the first question.
        """
        if self.no_chat is not None:
            raise bad_request(f"this model cannot chat ({self.no_chat}): use /v1/completions", "model")
        said = _said(messages)
        self._check_length([text for _, text in said])
        return self._checked(self._encoded(said, after_text))

    def with_passages(self, messages: Sequence[Message], passages: str) -> Tensor:
        """Tokens of a `conversation` after a text, with `passages` of the text in front of the last message.

        They do not count as tokens of the client, which are limited.
        """
        *before, (role, question) = _said(messages)
        return self._encoded([*before, (role, passages + question)], after_text=True)

    def _encoded(self, said: list[tuple[str, str]], after_text: bool) -> Tensor:
        """Tokens of what was said, pairs of a role and a text."""
        if after_text:
            said = _system_in_question(said)
        if said[-1][0] != "user" or any(role == "system" for role, _ in said[1:]):
            raise bad_request(
                "messages are those of system (first, if any), user and assistant; the last is the user's"
            )
        contents = [content for _, content in said]
        parts = self._template([role for role, _ in said])
        if after_text:
            parts[0] = ""
            contents[0] = SEPARATOR + contents[0]
        pieces = [self._templates.encode(parts[0], continues=True).ids]
        for content, part in zip(contents, parts[1:], strict=True):
            _check_text(content)
            pieces.append(self._texts.encode(content, continues=True).ids)
            pieces.append(self._templates.encode(part, continues=True).ids)
        return torch.from_numpy(np.concatenate(pieces))

    def _check_length(self, texts: Sequence[str]) -> None:
        """Refusal for texts that have too many tokens for sure. Short ones are soon encoded, which shows it, too."""
        if sum(map(len, texts)) > PIECE_CHARACTERS:
            tokens = 0
            for piece in chain.from_iterable(map(self._texts.pieces, texts)):
                tokens += len(piece)
                if tokens > self._most:
                    raise self._too_long("more than")

    def _checked(self, ids: Tensor) -> Tensor:
        if len(ids) > self._most:
            raise self._too_long(f"{len(ids)} tokens, and this server takes")
        if not len(ids):
            raise bad_request("the prompt is empty")
        return ids

    def _too_long(self, has: str) -> Refusal:
        return bad_request(f"the prompt has {has} {self._most} tokens: put long texts into a context")

    def _template(self, roles: Sequence[str]) -> list[str]:
        """The template's text before, between and after messages of these roles."""
        marks = [f"message-{number}-of-{len(roles)}" for number in range(1, len(roles) + 1)]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            rest: Any = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise bad_request(f"the model's chat template refuses these messages: {error}", "messages") from error
        parts = []
        for mark in marks:
            part, found, rest = rest.partition(mark)
            if not found:
                raise bad_request("the model's chat template leaves out one of these messages", "messages")
            parts.append(part)
        return [*parts, rest]


def _said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Role and text of each message, with the template's name for the role."""
    return [("system" if one.role == "developer" else one.role, one.text) for one in messages]


def _system_in_question(said: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if said[0][0] != "system" or len(said) < 2:
        return said
    return [(said[1][0], said[0][1] + SEPARATOR + said[1][1]), *said[2:]]


def _check_text(text: str) -> None:
    if not text.strip():
        raise bad_request("a message is empty", "messages")
