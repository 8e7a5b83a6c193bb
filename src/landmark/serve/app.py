"""The application: all routes around one server, which stops with it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

import landmark
from landmark.serve import answer_routes, context_routes, operation_routes, pages
from landmark.serve.http import AsciiJSON, Guard, in_engine, install_errors
from landmark.serve.protocol import ErrorResponse
from landmark.serve.server import Server

log = logging.getLogger("landmark.serve")
_SWEEP = 5.0  # seconds between two looks for expired contexts
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 504)
}


def create_app(server: Server, *, hosts: Sequence[str] | None = None, grace: float = 30.0) -> FastAPI:
    """The application of a server that has started; `hosts` are the names under which it is reached, None for any.

    When it stops, answers get `grace` seconds to finish.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(server))
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        await asyncio.to_thread(server.stop, grace)

    app = FastAPI(
        title="landmark",
        version=landmark.__version__,
        lifespan=lifespan,
        docs_url=None,  # its page would be loaded from another site
        redoc_url=None,
        default_response_class=AsciiJSON,
        responses=_ERRORS,
    )
    app.state.server = server
    install_errors(app)
    for routes in (answer_routes, context_routes, operation_routes, pages):
        app.include_router(routes.router)
    most = server.limits.body_bytes
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=most)
    app.add_middleware(Guard, hosts=hosts, most_bytes=most, metrics=server.metrics)  # around the others
    return app


async def _sweep(server: Server) -> None:
    """Deletes contexts whose time is over, every few seconds."""
    while True:
        await asyncio.sleep(_SWEEP)
        try:
            await in_engine(server, server.contexts.remove_expired)
        except Exception:  # whatever fails now, the next look may succeed
            log.exception("expired contexts are not deleted")
