"""A server that listens, in a thread of the test's process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import uvicorn

from landmark.serve.run import Address, listen, web_config
from landmark.serve.server import Server

NAME = "tiny"
_LOCAL = Address(grace=5)


@dataclass
class Running:
    """A server that listens at `url`."""

    server: Server
    url: str

    def client(self, key: str = "none"):
        """The client of OpenAI, which tries nothing twice."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


@contextmanager
def running(model, tokenizer, *, address: Address = _LOCAL, **options) -> Iterator[Running]:
    server = Server(model, tokenizer, NAME, **options)
    server.start()
    listening = listen(replace(address, port=0))
    web = uvicorn.Server(web_config(server, address))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not web.started and thread.is_alive():
            thread.join(0.01)
        assert web.started, "the server did not start"
        yield Running(server, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        web.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(condition, seconds=120.0):
    """Waits for a condition; whether it came."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
