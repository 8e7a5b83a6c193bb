"""An object store of its own for a test: moto's S3, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import ProxyHandler, build_opener

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Variables of the environment by which s3fs reaches a server with the bucket `bucket`."""
    for needed in ("s3fs", "moto", "flask"):
        pytest.importorskip(needed, reason="the extra remote, and moto as a server of S3")
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rsplit(":", 1)[1]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        direct = build_opener(ProxyHandler({}))
        for _ in range(600):
            try:
                direct.open(f"{url}/moto-api/data.json", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "moto did not start"
                time.sleep(0.1)
        settings = {**KEYS, "AWS_ENDPOINT_URL_S3": url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        subprocess.run([sys.executable, "-c", _MAKE_BUCKET], env={**os.environ, **settings}, check=True, timeout=120)
        yield settings
    finally:
        server.kill()
        server.wait()


_MAKE_BUCKET = """
import fsspec
fsspec.filesystem("s3").mkdir("bucket")
"""
