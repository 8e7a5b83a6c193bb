"""What clients send and get: the requests and responses of OpenAI's protocol, and those of contexts.

Fields that OpenAI's protocol does not have: `context`, `sources`, `sentences` and `reread` of a request, and `landmark`
of a choice.
A field that is not here is refused, and so is every value that cannot be honoured.
"""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from landmark.contexts.documents import Source

MOST_CHOICES = 8
NAME = r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME)]
Zero = Annotated[float | None, Field(ge=0, le=0)]


class Request(BaseModel):
    """JSON with these fields, of these types, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Request):
    include_usage: bool = False


class TextFormat(Request):
    type: Literal["text"]


class GenerationRequest(Request):
    """What both ways to ask have in common."""

    model: str = Field(max_length=200, description="A model, or MODEL@CONTEXT.")
    context: str | None = Field(None, max_length=100, description="Name or id of the context that is asked.")
    sources: int = Field(
        5, ge=0, le=50, description="Opened blocks that come with the answer, behind those read again; 0: no passages."
    )
    sentences: bool = Field(False, description="Whether they also come for each sentence of the answer.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100, description="0, the default, takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=8)]
        | None
    ) = None
    seed: int | None = Field(None, ge=0, lt=2**32)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=200, description="A label of the client's own; nothing depends on it.")
    # Accepted where they change nothing, because clients send them.
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(Request):
    type: Literal["text"]
    text: str


class Message(Request):
    """A message; `system` and `developer` may only come first."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1, max_length=1000)
    reread: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Blocks of the context to read again in front of the last message; by default as `landmark chat`.",
    )
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: TextFormat | None = None
    tools: list[Any] | None = Field(None, max_length=0)


class CompletionRequest(GenerationRequest):
    prompt: str = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


# Responses.


class SentenceFields(BaseModel):
    """Characters `first:last` of the answer, and what was read for them."""

    first: int
    last: int
    sources: list[Source]


class AnswerFields(BaseModel):
    """The extension `landmark` of a choice: where its answer comes from."""

    context: str | None = None
    tokens_read: int
    sources: list[Source]
    sentences: list[SentenceFields] | None = None


class TokensCached(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    """`prompt_tokens` are those of the context, which are cached, and of the prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokensCached


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorFields


class ModelFields(BaseModel):
    """A model; `chat` says whether it takes conversations."""

    id: str
    chat: bool
    object: Literal["model"] = "model"
    created: int = Field(default_factory=lambda: int(time.time()))
    owned_by: str = "landmark"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelFields]


# Contexts.


class DocumentText(Request):
    name: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1)


class ContextRequest(Request):
    """A new context. `ttl` are the seconds that it lives; a shared one can be asked, not changed, by every key."""

    name: Name
    documents: list[DocumentText] = Field(default_factory=list, max_length=1000)
    ttl: float | None = Field(None, gt=0, le=10**9)
    shared: bool = False


class ContextChange(Request):
    """Seconds from now until it expires; None for never."""

    ttl: float | None = Field(gt=0, le=10**9)


class DocumentsRequest(Request):
    documents: list[DocumentText] = Field(min_length=1, max_length=1000)


class DocumentBody(Request):
    """The text of a document that its path names."""

    text: str = Field(min_length=1)


class DocumentFields(BaseModel):
    name: str
    tokens: int
    bytes: int


class JobFields(BaseModel):
    """The reading of some documents, those whose texts the context lacks. `tokens` is None until they are counted."""

    id: str
    object: Literal["context.job"] = "context.job"
    status: Literal["queued", "reading", "done", "cancelled", "failed"]
    documents: list[str]
    tokens_read: int
    tokens: int | None
    error: str | None = None
    created: float


class JobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobFields]


class ContextFields(BaseModel):
    """A context. It can be asked when it is `ready`; documents that are being read are not among `documents` yet."""

    id: str
    object: Literal["context"] = "context"
    name: str
    status: Literal["empty", "reading", "ready"]
    shared: bool
    writable: bool
    created: float
    expires: float | None
    ttl: float | None
    tokens: int
    bytes: int
    documents: list[DocumentFields]
    job: JobFields | None = None


class ContextList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ContextFields]


class Deleted(BaseModel):
    id: str
    object: Literal["context.deleted", "context.document.deleted"] = "context.deleted"
    deleted: bool = True
