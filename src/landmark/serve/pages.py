"""The web page: files of this package, which need nothing from elsewhere."""

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from landmark.view.page import STYLE

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": (_PAGE / "index.html", "text/html"),
    "/base.css": (STYLE, "text/css"),
    "/page.css": (_PAGE / "page.css", "text/css"),
    "/page.js": (_PAGE / "page.js", "text/javascript"),
}


def _file(path: Path, kind: str) -> Callable[[], Response]:
    content = path.read_bytes()

    def serve() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")

    return serve


router = APIRouter()  # a route for each file and no others: nothing of a request is part of a path
for _route, (_path, _kind) in _FILES.items():
    router.add_api_route(_route, _file(_path, _kind), methods=["GET"], include_in_schema=False)
