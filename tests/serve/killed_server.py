"""Kills of a server while it reads documents and answers: what was committed is there, and all else is absent."""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from forked_server import ForkedServer
from serving import NAME
from users import User, Wrong, strays

_LONGEST = 0.8  # seconds after which a server is killed, at most


class Killed(NamedTuple):
    """What one kill met: jobs that were being read, streams that were open, documents on disk after it."""

    reading: int
    answering: int
    documents: int


class Trial:
    """One server on the folder `data`, started and killed again and again, and its users."""

    def __init__(self, model: Any, tokenizer: Any, data: Path, seed: int, *, users: int = 2) -> None:
        self._data = data
        self._draw = random.Random(seed)
        self._server = ForkedServer(model, tokenizer, data, data.parent / "server.log")
        self._url = self._server.url
        self.users = [User(self._url, f"user{n}", f"{seed} {n}", most_words=1500) for n in range(users)]

    def kill(self) -> Killed:
        """Starts the server, uses it, kills it at a random instant, and looks at what it left. Wrong for a loss."""
        self._server.start()
        try:
            for user in self.users:
                user.reconnect()
                user.settle()
            if found := strays(self._data):
                raise Wrong(f"{found} was left behind")
            answers = self._use()
            reading, answering = self._state()
            if self._draw.random() < 0.3:  # in the middle of a request that changes something
                process = self._server.process
                threading.Timer(self._draw.uniform(0, 0.02), os.kill, (process, signal.SIGKILL)).start()
                self._act_to_the_end()
            else:
                time.sleep(self._draw.uniform(0, _LONGEST))
        except httpx.TimeoutException:
            self._server.show_threads()
            raise
        finally:
            self._server.stop()
        for thread in answers:
            thread.join()
        documents = sum(user.check_disk(self._data) for user in self.users)
        return Killed(reading, answering, documents)

    def finish(self) -> None:
        """Starts the server once more, lets it do what is left, and stops it as its operator would."""
        self._server.start()
        try:
            for user in self.users:
                user.reconnect()
                user.settle()
        finally:
            self._server.stop(signal.SIGTERM)
        for user in self.users:
            user.check_disk(self._data)
            user.close()

    @property
    def counts(self) -> dict[str, int]:
        """How often what was answered, by method and status."""
        total: Counter[str] = Counter()
        for user in self.users:
            total.update(user.counts)
        return dict(sorted(total.items()))

    def _use(self) -> list[threading.Thread]:
        """Requests of all users, and an answer of each that streams while the server dies."""
        for _ in range(self._draw.randint(2, 5)):
            self._draw.choice(self.users).act()
        for user in self.users:
            user.note_done()
        streams = [threading.Thread(target=self._stream, args=(user.name,)) for user in self.users]
        for stream in streams:
            stream.start()
        return streams

    def _stream(self, name: str) -> None:
        body = {"model": f"{NAME}@{name}", "prompt": "jim ", "max_tokens": 4000, "stream": True}
        try:
            with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=60) as response:
                for _ in response.iter_lines():
                    pass
        except httpx.TransportError:
            pass

    def _state(self) -> tuple[int, int]:
        """Jobs to be read and answers that run, as the server itself says."""
        found = {}
        for line in httpx.get(f"{self._url}/metrics", timeout=60).text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return int(found["landmark_reading_jobs"]), int(found["landmark_running_requests"])

    def _act_to_the_end(self) -> None:
        try:
            while True:
                self._draw.choice(self.users).act()
        except httpx.TransportError:
            pass
