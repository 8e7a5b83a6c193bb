"""A server that listens, in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from landmark.serve.app import create_app
from landmark.serve.run import Address, listen
from landmark.serve.server import Server

NAME = "tiny"


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
def running(model, tokenizer, **options) -> Iterator[Running]:
    server = Server(model, tokenizer, NAME, **options)
    listening = listen(Address(port=0))
    address = Address(port=listening.getsockname()[1])
    app = create_app(server, hosts=address.hosts, grace=5)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not web.started and thread.is_alive():
            thread.join(0.01)
        assert web.started, "the server did not start"
        yield Running(server, f"http://127.0.0.1:{address.port}")
    finally:
        web.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
