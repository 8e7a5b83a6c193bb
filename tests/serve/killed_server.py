"""Kills of a server while it reads documents and answers: what was committed is there, and all else is absent."""

import faulthandler
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from serving import NAME
from users import User, Wrong, strays

from landmark.serve.run import Address, listen, web_config
from landmark.serve.server import Server

_SECONDS = 120.0  # longest wait for a start
_LONGEST = 0.8  # seconds after which a server is killed, at most


class Killed(NamedTuple):
    """What one kill met: jobs that were being read, streams that were open, documents on disk after it."""

    reading: int
    answering: int
    documents: int


class Trial:
    """One server on the folder `data`, started and killed again and again, and its users."""

    def __init__(self, model: Any, tokenizer: Any, data: Path, seed: int, *, users: int = 2) -> None:
        self._model, self._tokenizer, self._data = model, tokenizer, data
        self._draw = random.Random(seed)
        with listen(Address(port=0)) as free:
            self._address = Address(port=free.getsockname()[1], grace=1)
        self._url = f"http://127.0.0.1:{self._address.port}"
        self.users = [User(self._url, f"user{n}", f"{seed} {n}", most_words=1500) for n in range(users)]

    def kill(self) -> Killed:
        """Starts the server, uses it, kills it at a random instant, and looks at what it left. Wrong for a loss."""
        process = self._start()
        try:
            for user in self.users:
                user.reconnect()
                user.settle()
            if found := strays(self._data):
                raise Wrong(f"{found} was left behind")
            answers = self._use()
            reading, answering = self._state()
            if self._draw.random() < 0.3:  # in the middle of a request that changes something
                threading.Timer(self._draw.uniform(0, 0.02), os.kill, (process, signal.SIGKILL)).start()
                self._act_to_the_end()
            else:
                time.sleep(self._draw.uniform(0, _LONGEST))
        except httpx.TimeoutException:  # it hangs: its threads say where, on standard error
            os.kill(process, signal.SIGUSR1)
            time.sleep(2)
            raise
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        for thread in answers:
            thread.join()
        documents = sum(user.check_disk(self._data) for user in self.users)
        return Killed(reading, answering, documents)

    def finish(self) -> None:
        """Starts the server once more, lets it do what is left, and stops it as its operator would."""
        process = self._start()
        try:
            for user in self.users:
                user.reconnect()
                user.settle()
        finally:
            os.kill(process, signal.SIGTERM)
            _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGTERM:  # which uvicorn passes on when all is closed
            raise Wrong(f"the server ended with {os.waitstatus_to_exitcode(status)}")
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

    def _start(self) -> int:
        """The process of a server that answers."""
        listening = listen(self._address)
        process = os.fork()
        if not process:
            self._be_the_server(listening)
        listening.close()
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            try:
                httpx.get(f"{self._url}/healthz", timeout=5).raise_for_status()
                return process
            except httpx.HTTPError:
                if os.waitpid(process, os.WNOHANG)[0]:
                    raise Wrong("the server did not start: its error is above") from None
                time.sleep(0.02)
        raise Wrong(f"the server did not start within {_SECONDS} s")

    def _be_the_server(self, listening: Any) -> None:
        try:
            faulthandler.register(signal.SIGUSR1, sys.__stderr__)
            server = Server(self._model, self._tokenizer, NAME, data=self._data)
            server.start()
            uvicorn.Server(web_config(server, self._address)).run(sockets=[listening])
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
