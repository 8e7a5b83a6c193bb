"""The web page: files of this package, which need nothing from elsewhere."""

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def _file(name: str, kind: str) -> Callable[[], Response]:
    content = (_PAGE / name).read_bytes()

    def serve() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")

    return serve


router = APIRouter()  # a route for each file and no others: nothing of a request is part of a path
for _route, (_name, _kind) in _FILES.items():
    router.add_api_route(_route, _file(_name, _kind), methods=["GET"], include_in_schema=False)
