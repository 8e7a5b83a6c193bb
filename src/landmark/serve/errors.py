"""Refusals: what a client is to know of an error, in OpenAI's form."""

from collections.abc import Sequence

_NAMED = 20  # names in a message


class Refusal(Exception):
    """An answer that is an error: its HTTP status, a message without a path of the server, and OpenAI's fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after


def bad_request(message: str, param: str | None = None) -> Refusal:
    """A request that cannot be honoured."""
    return Refusal(400, message, param=param)


def no_such_context(names: Sequence[str]) -> Refusal:
    """The same for a context that is another's and for one that does not exist; `names` are those to be asked."""
    return Refusal(404, f"there is no such context: {_known(names)}", param="context", code="context_not_found")


def no_such_model(names: Sequence[str]) -> Refusal:
    """No model of this name; `names` are those that the caller may ask."""
    return Refusal(404, f"there is no such model: {_known(names)}", param="model", code="model_not_found")


def _known(names: Sequence[str]) -> str:
    """What a caller may name instead."""
    more = ", ..." if len(names) > _NAMED else ""
    return f"you may name {', '.join(names[:_NAMED])}{more}" if names else "you have none yet, and none is shared"


def too_busy(seconds: int, why: str = "the server is busy") -> Refusal:
    """A full queue."""
    return Refusal(
        429,
        f"{why}: try again in {seconds} s",
        kind="rate_limit_error",
        code="queue_full",
        retry_after=seconds,
    )


def memory_taken() -> Refusal:
    """No room for another request, which the end of others will make."""
    return too_busy(5, "the server's memory is taken")


def shutting_down() -> Refusal:
    """A server that was told to stop."""
    return Refusal(503, "the server is shutting down", kind="server_error", retry_after=5)


def over_quota(what: str) -> Refusal:
    """A key that has used up what it may use."""
    return Refusal(429, f"the quota of this key is used up: {what}", kind="insufficient_quota", code="quota")
