"""What all routes share: who calls, how errors are told, what a browser may do, and one line of log for a request."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from landmark.serve.errors import Refusal, shutting_down
from landmark.serve.generation import refusal_of
from landmark.serve.keys import Caller
from landmark.serve.metrics import Metrics
from landmark.serve.responses import error_body
from landmark.serve.server import Server

log = logging.getLogger("landmark.serve")
T = TypeVar("T")

_NO_ROUTE = "there is no such route: the base URL of clients ends with /v1, and /openapi.json lists all routes"
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none';"
        b" form-action 'none'; frame-ancestors 'none'",
    ),
]


async def _server_of(request: Request) -> Server:
    return request.app.state.server


Here = Annotated[Server, Depends(_server_of)]


async def _caller_of(request: Request, server: Here) -> Caller:
    return server.caller(request.headers.get("authorization"))


Who = Annotated[Caller, Depends(_caller_of)]


async def in_engine(server: Server, function: Callable[[], T]) -> T:
    """What `function` returns, called by the engine's thread between two forwards."""
    return await asyncio.wrap_future(server.engine.call(function))


# Errors.


class AsciiJSON(JSONResponse):
    """JSON in which characters beyond ASCII are escaped, so that what no encoding can write can be told, too."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def error_response(refusal: Refusal) -> Response:
    """A refusal as a response."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return AsciiJSON(error_body(refusal), refusal.status, headers)


def install_errors(app: FastAPI) -> None:
    """Makes every refusal one of OpenAI's form, without what was sent; `Guard` does that for defects."""

    async def refused(request: Request, error: Any) -> Response:
        return error_response(error)

    async def invalid(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        if first["loc"][0] == "body" and (refusal := _wrong_content(request)) is not None:
            return error_response(refusal)
        where = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
        what = str(first["msg"])[:500]
        return error_response(Refusal(400, f"{where}: {what}" if where else what, param=where or None))

    async def http_error(request: Request, error: Any) -> Response:
        what = _NO_ROUTE if error.status_code == 404 else str(error.detail)
        return error_response(Refusal(error.status_code, what))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


def _wrong_content(request: Request) -> Refusal | None:
    """The refusal of a body that is announced as something else than its route takes; it was not looked at."""
    route = getattr(request.scope.get("route"), "path", "")
    wanted = "multipart/form-data" if route.endswith("/files") else "application/json"
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == wanted:
        return None
    what = f"the body comes with Content-Type: {given[:100]}" if given else "the body comes without a Content-Type"
    return Refusal(415, f"{what}: send {wanted}", code="unsupported_media_type")


# Around every request.


class Guard:
    """Lets requests pass that name this server and come from its own pages, notes each, and adds headers.

    A page of another site can make a browser send requests to a server on loopback; its name, or the page's origin,
    gives it away. `hosts` are the names under which this server is reached, None for any. A body that is announced as
    more than `most_bytes` is refused here, in OpenAI's form.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, most_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._most_bytes = most_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            refusal = self._refusal(scope)
            app = self._app if refusal is None else error_response(refusal)
            await app(scope, receive, sending)
        except asyncio.CancelledError:  # the server was told to stop, and waits no longer
            if not status:
                await error_response(shutting_down())(scope, receive, sending)
        except Exception as error:
            if status:
                raise  # too late for another response
            log.exception("a request failed")
            await error_response(refusal_of(error))(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            fields = {"method": scope["method"], "route": route, "status": status}
            log.info(json.dumps({**fields, "seconds": round(time.monotonic() - began, 4)}))

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", "").lower(), headers.get(b"origin")
        named = self._hosts is None or _name_of(host) in self._hosts
        if not named or (origin is not None and origin.lower().partition("://")[2] != host):
            return Refusal(403, "this request names another server, or comes from another site", code="foreign")
        length = headers.get(b"content-length", "")
        if length.isdecimal() and int(length[:20]) > self._most_bytes:
            return Refusal(413, f"this server takes requests of {self._most_bytes:,} bytes")
        return None


def _name_of(host: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
