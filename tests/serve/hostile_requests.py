"""Requests made to do harm, drawn at random, and what a server must not do about any of them.

They come from a user with a key, from one with a wrong one, and from one without. A context of another user has a
secret, which no answer may show.
"""

import json
import logging
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from serving import NAME, Running, running, until

from landmark.serve.keys import Keys, Quota, new_key
from landmark.serve.server import Limits

SECRET = "the treasure lies under the third palm"
LIMIT = 200_000  # bytes of a request
NUMBERS = (-1, 0, -(2**63), 2**64, 10**30, -(10**400), 1e308, -1e308, -0.5, 1e-320, float("nan"), float("inf"))
TEXTS = (
    "",
    "\x00",
    "\ud800",
    "\u202e\u200b",
    "a" * 50_000,
    "../" * 40 + "etc/passwd",
    "..\\..\\windows\\system.ini",
    "/proc/self/environ",
    "file:///etc/passwd",
    "%2e%2e%2fetc%2fpasswd",
    "a\r\nSet-Cookie: x=1",
    "' OR 1=1 --",
    "{{7*7}}${7*7}<script>alert(1)</script>",
    "<|im_start|>system\n</s><pad>",
    "\U0001f600" * 1000,
)
FIELDS = (
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "context",
    "sources",
    "sentences",
    "logprobs",
    "name",
    "documents",
    "ttl",
    "shared",
    "text",
    "__proto__",
)


@dataclass
class Attack:
    """A request as bytes. A `broken` one may get no answer, and the connection is closed behind it."""

    kind: str
    request: bytes
    broken: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.request[:300]!r}"


class Outcome(NamedTuple):
    """The status of an answer, 0 for none, and what is wrong with it."""

    status: int
    wrong: list[str]


@dataclass
class Target:
    """A server, the key of who attacks it, and what must not be seen."""

    one: Running
    key: str
    owner: httpx.Client
    hidden: list[str]  # what no answer may show
    their: str  # the id of a context of another
    errors: list[logging.LogRecord] = field(default_factory=list)

    def attack(self, attack: Attack) -> Outcome:
        """Sends it, and looks at the answer."""
        answer = self._answer(attack)
        text = answer.decode("latin-1").removeprefix("HTTP/1.1 100 Continue\r\n\r\n")
        head, _, body = text.partition("\r\n\r\n")
        status = int(head.split(" ", 2)[1]) if head.startswith("HTTP/") else 0
        wrong = [f"shows {secret!r}" for secret in self.hidden if secret in text]
        wrong += [f"shows {mark!r}" for mark in ("Traceback", "site-packages", "root:x:") if mark in text]
        if status >= 500:
            wrong.append(f"status {status}: {body[:300]}")
        if not status and not attack.broken:
            wrong.append("no answer")
        formed = '"error"' in body or "Invalid HTTP request" in body or attack.request.startswith(b"HEAD")
        if 400 <= status < 500 and not formed:
            wrong.append(f"an error that is none of OpenAI's form: {body[:300]}")
        return Outcome(status, wrong)

    def _answer(self, attack: Attack) -> bytes:
        host, port = self.one.url.removeprefix("http://").split(":")
        answer = b""
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            with suppress(OSError):  # refused before all of it was sent: there may be an answer all the same
                connection.sendall(attack.request)
                if attack.broken:  # the server may wait for more of it
                    connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while piece := connection.recv(65536):
                    answer += piece
        return answer

    def logged_errors(self) -> list[str]:
        """What else went wrong: errors in the server's log, a context of another that changed, no health."""
        found = [f"logged: {record.getMessage()} {record.exc_info}" for record in self.errors]
        if httpx.get(f"{self.one.url}/healthz", timeout=60).status_code != 200:
            found.append("the server is not healthy")
        context = self.owner.get("/contexts/treasure").json()
        if [one["name"] for one in context.get("documents", ())] != ["map.txt"]:
            found.append(f"the context of another changed: {context}")
        return found


@contextmanager
def target(model: Any, tokenizer: Any, folder: Path) -> Iterator[Target]:
    """A server with two users, one of whom has a secret."""
    keys = {name: new_key(folder / "keys.json", name, Quota(contexts=4, bytes=3_000_000)) for name in ("anna", "bert")}
    limits, data = Limits(body_bytes=LIMIT, new_tokens=4, prompt_tokens=2000), folder / "data"
    with running(model, tokenizer, data=data, keys=Keys.load(folder / "keys.json"), limits=limits) as one:
        head = {"Authorization": f"Bearer {keys['anna']}"}
        with httpx.Client(base_url=f"{one.url}/v1", headers=head, timeout=120) as owner:
            text = f"{SECRET} . " * 5
            body = {"name": "treasure", "documents": [{"name": "map.txt", "text": text}]}
            their = owner.post("/contexts", json=body).json()["id"]
            assert until(lambda: owner.get("/contexts/treasure").json()["status"] == "ready")
            hidden = [SECRET, "map.txt", their, str(folder), keys["anna"]]
            found = Target(one, keys["bert"], owner, hidden, their)
            handler = _Errors(found.errors)
            logging.getLogger().addHandler(handler)
            try:
                yield found
            finally:
                logging.getLogger().removeHandler(handler)


class _Errors(logging.Handler):
    def __init__(self, errors: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(record)


# Drawing.


def drawn(draw: random.Random, target: Target) -> Attack:
    """An attack of a kind drawn at random."""
    name = draw.choice(list(KINDS))
    return Attack(name, KINDS[name](draw, target), broken=name in _BROKEN)


def _request(
    draw: random.Random,
    target: Target,
    method: str,
    path: str,
    body: bytes = b"",
    kind: str = "application/json",
    headers: bytes = b"",
) -> bytes:
    key = draw.choice([target.key] * 8 + ["lm-wrong", ""])
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}Content-Type: {kind}\r\n"
    return head.encode() + headers + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def _route(draw: random.Random, target: Target) -> tuple[str, str]:
    """A method and a path that exist, of an own context, of another's, or of none."""
    context = draw.choice(
        ["mine", "mine", target.their, "treasure", "ctx-0000000000000000", quote(draw.choice(TEXTS[5:9]))]
    )
    return draw.choice(
        [
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/contexts"),
            ("POST", f"/v1/contexts/{context}/documents"),
            ("PUT", f"/v1/contexts/{context}/documents/a.txt"),
            ("DELETE", f"/v1/contexts/{context}/documents/a.txt"),
            ("DELETE", f"/v1/contexts/{context}/documents/map.txt"),
            ("PATCH", f"/v1/contexts/{context}"),
            ("GET", f"/v1/contexts/{context}"),
            ("GET", f"/v1/contexts/{context}/jobs"),
            ("DELETE", f"/v1/contexts/{context}/jobs/job-0"),
            ("DELETE", f"/v1/contexts/{context}"),
            ("GET", "/v1/contexts"),
            ("GET", "/v1/models"),
            ("GET", f"/v1/models/{NAME}@{context}"),
        ]
    )


def _value(draw: random.Random, target: Target, depth: int = 0) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(TEXTS),
        lambda: draw.choice([None, True, False, [], {}]),
        lambda: draw.choice([target.their, "treasure", f"{NAME}@{target.their}", f"{NAME}@treasure", "mine"]),
    ]
    if depth < 3:
        kinds.append(lambda: [_value(draw, target, depth + 1) for _ in range(draw.randint(0, 3))])
        kinds.append(lambda: {draw.choice(FIELDS): _value(draw, target, depth + 1) for _ in range(draw.randint(0, 3))})
    return draw.choice(kinds)()


def _fields(draw: random.Random, target: Target) -> bytes:
    """A request that is right but for some of its fields."""
    method, path = _route(draw, target)
    right: dict[str, Any] = {"model": f"{NAME}@mine", "prompt": "jim ", "max_tokens": 2}
    if "chat" in path:
        right = {"model": NAME, "messages": [{"role": "user", "content": "jim"}], "max_tokens": 2}
    elif path.endswith("contexts"):
        right = {"name": "mine", "documents": [{"name": "a.txt", "text": "jim looked at the sea . " * 9}]}
    elif path.endswith("documents"):
        right = {"documents": [{"name": f"{draw.getrandbits(20):x}.txt", "text": "the sea was calm . " * 9}]}
    elif "/documents/" in path:
        right = {"text": f"the sea was calm {draw.getrandbits(30)} . " * 9}
    bad = {draw.choice(FIELDS): _value(draw, target) for _ in range(draw.randint(0, 3))}
    return _request(draw, target, method, path, json.dumps(right | bad).encode())


def _huge(draw: random.Random, target: Target) -> bytes:
    method, path = _route(draw, target)
    size = draw.choice([LIMIT // 2, LIMIT - 100, LIMIT + 1, 5 * LIMIT])
    body = draw.choice(
        [
            json.dumps({"model": NAME, "prompt": "x" * size}).encode(),
            json.dumps({"model": NAME, "prompt": "jim ", "stop": ["a"] * (size // 5)}).encode(),
            json.dumps({"model": NAME, "messages": [{"role": "user", "content": "a"}] * (size // 40)}).encode(),
            json.dumps({f"field{number}": 1 for number in range(size // 15)}).encode(),
            b'{"max_tokens": ' + b"9" * size + b"}",
            b" " * size,
        ]
    )
    return _request(draw, target, method, path, body)


def _deep(draw: random.Random, target: Target) -> bytes:
    method, path = _route(draw, target)
    depth = draw.choice([50, 900, 5000, 60_000])
    nested = draw.choice([b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])
    inside = b'{"model": "tiny", "prompt": ' + nested + b"}"
    return _request(draw, target, method, path, draw.choice([nested, inside])[: LIMIT - 1])


def _bytes(draw: random.Random, target: Target) -> bytes:
    method, path = _route(draw, target)
    right = json.dumps({"model": NAME, "prompt": "jim looked at the sea", "max_tokens": 2}).encode()
    body = bytearray(draw.choice([right, right, draw.randbytes(draw.randint(0, 300))]))
    for _ in range(draw.randint(1, 6)):
        if body:
            body[draw.randrange(len(body))] = draw.choice([0xFF, 0xC3, 0xED, 0x00, 0x22, 0x5C, 0x80])
    kind = draw.choice(
        ["application/json"] * 4 + ["text/plain", "multipart/form-data; boundary=x", "a/b; charset=\x7f"]
    )
    return _request(draw, target, method, path, bytes(body[: draw.randint(0, len(body))]), kind)


def _names(draw: random.Random, target: Target) -> bytes:
    """Names of documents and files that lead elsewhere."""
    name = draw.choice([*TEXTS, "keys.json", "record.json", ".", "..", "a/../../b", "\x1b[31m", "con", "a" * 300])
    text = draw.choice(["jim looked at the sea . ", "x", " ", "\x00", "\ufeffa"]) * draw.randint(1, 20)
    way = draw.randrange(3)
    if way == 0:
        path = f"/v1/contexts/mine/documents/{quote(name.encode('utf-8', 'replace'), safe='')}"
        return _request(draw, target, draw.choice(["PUT", "DELETE"]), path, json.dumps({"text": text}).encode())
    if way == 1:
        body = json.dumps({"documents": [{"name": name, "text": text}]}).encode()
        return _request(draw, target, "POST", "/v1/contexts/mine/documents", body)
    shown = name.encode("utf-8", "replace").replace(b"\r", b"").replace(b"\n", b"")
    disposition = b'Content-Disposition: form-data; name="files"; filename="' + shown + b'"'
    body = b"--x\r\n" + disposition + b"\r\n\r\n" + text.encode() + draw.choice([b"\r\n--x--\r\n", b"", b"\r\n--y--"])
    return _request(draw, target, "POST", "/v1/contexts/mine/files", body, "multipart/form-data; boundary=x")


def _paths(draw: random.Random, target: Target) -> bytes:
    part = draw.choice([quote(text.encode("utf-8", "replace"), safe="") for text in TEXTS if text])
    path = draw.choice(
        [
            "/../../etc/passwd",
            "/page/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/keys.json",
            "/v1/contexts/../../keys.json",
            "/page.js%00.html",
            "/v1/contexts/" + part,
            "/v1/models/" + part,
            f"/v1/contexts/{target.their}/../mine",
            "/v1/contexts/mine/jobs?stream=" + part,
            "/%ff%fe%c3%28",
            "/v1/contexts?" + "a=b&" * 2000,
            "*",
            "http://localhost/v1/contexts",
            "/openapi.json",
        ]
    )
    return _request(draw, target, draw.choice(["GET", "GET", "POST", "HEAD", "OPTIONS", "TRACE", "FOO"]), path)


def _headers(draw: random.Random, target: Target) -> bytes:
    games = [
        b"Host: evil.example\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Origin: http://evil.example\r\n",
        b"Origin: null\r\n",
        b"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: a\r\n",
        b"Authorization: Bearer " + b"\xff" * 20 + b"\r\n",
        b"Authorization: Basic " + b"A" * 5000 + b"\r\n",
        b"X: " + b"y" * draw.choice([1000, 70_000, 200_000]) + b"\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n",
        b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\n",
        b"Range: bytes=0-99999999999\r\n",
        b"Cookie: " + b"a=b; " * 500 + b"\r\n",
        b"\x00: x\r\n",
        b"No colon here\r\n",
        b" folded: x\r\n",
        b"Accept: \r\nAccept-Language: \xc3\x28\r\n",
    ]
    body = json.dumps({"model": f"{NAME}@mine", "prompt": "jim ", "max_tokens": 2}).encode()
    chosen = b"".join(draw.sample(games, draw.randint(1, 3)))
    request = _request(draw, target, "POST", "/v1/completions", body, headers=chosen)
    if draw.random() < 0.2:
        request = request.replace(b"HTTP/1.1", draw.choice([b"HTTP/1.0", b"HTTP/9.9", b"HTTP/2", b"", b"ICY"]), 1)
    if draw.random() < 0.2:
        request = request[: draw.randint(1, len(request))]
    if draw.random() < 0.1:
        request = (
            draw.choice([b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 50]) + request
        )
    return request


KINDS: dict[str, Callable[[random.Random, Target], bytes]] = {
    "fields": _fields,
    "huge": _huge,
    "deep": _deep,
    "bytes": _bytes,
    "names": _names,
    "paths": _paths,
    "headers": _headers,
}
_BROKEN = ("headers", "huge")
