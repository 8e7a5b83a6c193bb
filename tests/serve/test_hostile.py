"""Hostile requests: every one is refused with an error of OpenAI's form; none is a failure of the server."""

import json
import random
import socket
from contextlib import suppress

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from serving import NAME, running

from landmark.serve.names import document_name
from landmark.serve.server import Limits

LIMIT = 200_000
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
    "context",
    "sources",
)
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/contexts", "/v1/contexts/library/documents")
VALUES = (
    None,
    True,
    -1,
    0,
    10**30,
    -(10**400),
    1e308,
    -0.5,
    "",
    "\x00",
    "\ud800",
    "../../etc/passwd",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": {"b": []}},
    [{"role": "user", "content": "\udfff"}],
    ["a"] * 2000,
)


@pytest.fixture(scope="module")
def small(reader, library, tmp_path_factory):
    """A server that takes small requests, answers shortly, and keeps contexts."""
    data, limits = tmp_path_factory.mktemp("hostile"), Limits(body_bytes=LIMIT, new_tokens=4)
    with running(*reader, data=data, given={"library": library}, limits=limits) as one:
        yield one


@pytest.fixture(scope="module")
def http(small):
    with httpx.Client(base_url=small.url, timeout=120) as client:
        yield client


def check(response, *statuses):
    """A refusal in OpenAI's form that shows nothing of the server."""
    assert response.status_code in (statuses or range(400, 500)), response.text
    error = response.json()["error"]
    assert error["message"]
    assert "Traceback" not in response.text
    assert "/site-packages" not in response.text
    return error


def asked(**fields):
    return json.dumps({"model": f"{NAME}@library", "prompt": "jim ", "max_tokens": 2} | fields).encode()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\xff",
        b'{"model": "\xc3\x28"}',
        b"[" * 100_000,
        b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
        b'{"model": NaN, "prompt": Infinity}',
        b'{"model": 1e999}',
        b'{"n": ' + b"9" * 10_000 + b"}",
        b'{"model": "a", "model": "b"}',
        b"\x00" * 1000,
    ],
    ids=range(14),
)
def test_bodies_that_are_no_request(http, path, body):
    check(http.post(path, content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", None])
def test_other_kinds_of_content(http, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    check(http.post("/v1/completions", content=asked(), headers=headers), 415)


def test_too_much_is_refused_whether_it_is_announced_or_not(http):
    def pieces():
        for _ in range(10):
            yield b"x" * (LIMIT // 5)

    for content in (b"x" * (LIMIT + 1), pieces()):
        headers = {"Content-Type": "application/json"}
        check(http.post("/v1/completions", content=content, headers=headers), 413)
    files = [("files", ("a.txt", b"x" * (LIMIT + 1)))]
    assert http.post("/v1/contexts/library/files", files=files).status_code == 413


def test_hundreds_of_made_up_requests(http):
    rng = random.Random(0)
    for _ in range(300):
        fields = {name: rng.choice(VALUES) for name in rng.sample(FIELDS, rng.randint(1, 4))}
        body = json.loads(asked()) | fields
        response = http.post(rng.choice(PATHS), content=json.dumps(body), headers={"Content-Type": "application/json"})
        if response.status_code != 200:
            check(response)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/contexts/..%2f..%2fetc",
        "/v1/contexts/%00",
        "/v1/contexts/%ff%fe",
        "/v1/contexts/" + "x" * 3000,
        "/v1/models/..%2f..%2f",
        "/page.py",
        "/keys.json",
        "/record.json",
    ],
)
def test_no_path_leads_to_a_file(http, path):
    assert http.get(path).status_code in (400, 404)


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: \xff\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    ],
    ids=range(10),
)
def test_games_with_headers(small, http, request_head):
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        answer = b""
        with suppress(OSError):  # refused without a word
            connection.sendall(request_head)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
    assert not answer or answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4"))
    assert http.get("/healthz").status_code == 200


def test_names_of_documents_are_labels():
    assert document_name("a/b\\c.txt") == "c.txt"
    assert document_name("..\\..\\x\x00\x1b[31m\u202ey\ud800.txt") == "x[31my.txt"
    assert len(document_name("n" * 1000)) == 200


def test_the_page_may_load_nothing_from_elsewhere(http):
    for path in ("/", "/page.js", "/page.css", "/base.css"):
        response = http.get(path)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "://" not in response.text


def status_is_documented(context, response, case):
    assert str(response.status_code) in case.operation.definition.raw["responses"]


def test_the_openapi_document_holds_what_it_says(small):
    schemathesis = pytest.importorskip("schemathesis", reason="part of the extra dev")
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

    def attempt(case):
        response = case.call(timeout=120)
        assert response.status_code < 500, (case, response.text)
        case.validate_response(response, checks=[status_is_documented])

    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        few(given(case=operation.as_strategy())(attempt))()
