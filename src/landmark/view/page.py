"""A view as one page of HTML that needs nothing else: no server, no network.

`assets/` has the page, its style and its scripts. Texts and figures are put beside them as data, never as markup.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from landmark.files import written_whole
from landmark.view.gather import ANSWER, PROMPT, Text, View

MOST_READS = 300_000  # reads of a block by a head on a page, 8 bytes each in it; the weakest are left out
_ASSETS = Path(__file__).parent / "assets"
STYLE = _ASSETS / "base.css"  # which the page of the server has, too
_SCRIPTS = ("data.js", "map.js", "reader.js", "page.js")  # one script, in this order
_PIECE = 256  # segments of text that a page parses together
_FULL = 65535  # a weight of 1 in 16 bits
# What could end a script, and characters that an editor may hide or turn around: all allowed in JSON as escapes.
_ESCAPED = re.compile(r"[<>&\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def write(view: View, path: Path) -> None:
    """Writes `render(view)`."""
    with written_whole(path) as partial:
        partial.write_text(render(view), encoding="utf-8")


def render(view: View) -> str:
    """The page."""
    style = STYLE.read_text(encoding="utf-8") + _asset("page.css")
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    segments = [segment for text in view.texts for segment in _segments(text, view.block_size)]
    parts = {
        "title": html.escape(f"landmark: {view.texts[0].name}"),
        "style": style,
        "script": script,
        "policy": f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        "data": "\n".join((*_numbers(view), _json("facts", _facts(view)), *_pieces(segments))),
    }
    # One pass over the page alone: what is filled in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """The source that a content security policy allows: this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _json(name: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return f'<script type="application/json" id="{name}">{text}</script>'


def _array(name: str, values: np.ndarray) -> str:
    """Numbers as base64 of their bytes, little-endian."""
    kind = values.dtype.name
    data = base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()
    return f'<script type="application/octet-stream" id="{name}" data-kind="{kind}">{data}</script>'


# Texts, in segments: the part of a block that lies in one text.


def _segments(text: Text, block_size: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The segments of a text, which together are all of it, each with how its passage differs from it.

    A passage goes from the first character of its tokens to the last. The difference is the characters (in UTF-16, as
    scripts count) in front of it, and those behind the segment that are part of it, or of the segment that are not.
    """
    edges = np.arange(-(-(text.first + 1) // block_size) * block_size, text.stop, block_size) - text.first
    tokens = [0, *edges.tolist(), len(text.offsets)]
    firsts = [int(text.offsets[token, 0]) for token in tokens[:-1]]
    bounds = [0, *firsts[1:], len(text.text)]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        last = int(text.offsets[tokens[number + 1] - 1, 1])
        before = _utf16(text.text[start : firsts[number]])
        behind = _utf16(text.text[stop:last]) - _utf16(text.text[last:stop])
        yield text.text[start:stop], (before, behind)


def _utf16(text: str) -> int:
    """Its length in scripts."""
    return len(text.encode("utf-16-le")) // 2


def _pieces(segments: list[tuple[str, tuple[int, int]]]) -> Iterator[str]:
    for number, start in enumerate(range(0, len(segments), _PIECE)):
        yield _json(f"text-{number}", [text for text, _ in segments[start : start + _PIECE]])
    yield _json("edges", {i: edge for i, (_, edge) in enumerate(segments) if edge != (0, 0)})


# Figures.


def _facts(view: View) -> dict[str, Any]:
    return {
        "model": view.model,
        "blockSize": view.block_size,
        "tokens": view.texts[-1].stop,
        "blocks": view.block_count,
        "layers": view.layers,
        "heads": view.local.shape[2],
        "pieceSize": _PIECE,
        "texts": [{"name": t.name, "kind": t.kind, "first": t.first, "stop": t.stop} for t in view.texts],
        "prompt": next(text.text for text in view.texts if text.kind == PROMPT),
        "answer": next(text.text for text in view.texts if text.kind == ANSWER),
        "generated": [{"text": t.text, "name": t.name, "number": t.number} for t in view.tokens],
    }


def _numbers(view: View) -> Iterator[str]:
    """The reads as columns, in the order of tokens; where those of each token begin; and the local weights."""
    tokens, layers, heads, _ = view.blocks.shape
    quantized = np.rint(view.weights * _FULL).astype(np.uint16)
    quantized[view.blocks < 0] = 0
    kept = np.flatnonzero(quantized)
    if len(kept) > MOST_READS:
        strongest = np.argpartition(quantized.ravel()[kept], -MOST_READS)[-MOST_READS:]
        kept = np.sort(kept[strongest])
    token, layer, head, _ = np.unravel_index(kept, view.blocks.shape)
    blocks = np.uint16 if view.block_count <= 1 << 16 else np.uint32
    yield _array("starts", np.searchsorted(token, np.arange(tokens + 1)).astype(np.uint32))
    yield _array("cells", (layer * heads + head).astype(np.uint16 if layers * heads <= 1 << 16 else np.uint32))
    yield _array("opened", view.blocks.ravel()[kept].astype(blocks))
    yield _array("weights", quantized.ravel()[kept])
    yield _array("local", np.rint(view.local * _FULL).astype(np.uint16))
