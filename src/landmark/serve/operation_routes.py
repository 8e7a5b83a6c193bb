"""The routes of those who run the server: health and figures."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response

from landmark.serve.errors import Refusal
from landmark.serve.http import Here, Who

router = APIRouter()


@router.get("/healthz")
async def health(server: Here) -> dict[str, str]:
    """Whether the server can answer."""
    if not server.engine.alive:
        raise Refusal(503, "the engine has ended", kind="server_error")
    return {"status": "ok"}


@router.get("/metrics", response_class=Response)
async def metrics(server: Here, caller: Who) -> Response:
    """Figures for Prometheus."""
    text = await asyncio.to_thread(server.metrics.text)  # it walks the disk
    return Response(text, media_type="text/plain; version=0.0.4")
