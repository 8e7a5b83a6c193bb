"""A soak: users do all that users do for a long time, in laps; the server is stopped and killed between rounds of them.

A lap ends when all jobs are done: what the server then takes, memory, threads, descriptors and files, can be compared.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from forked_server import ForkedServer
from users import User, Wrong, strays

from landmark.files import bytes_in


class Soak:
    """A server in a process of its own, on the folder `data`, and its users."""

    def __init__(self, model: Any, tokenizer: Any, data: Path, seed: int, *, users: int) -> None:
        self._data, self._log = data, data.parent / "server.log"
        options = {"options": {"host_budget": "4MB"}, "memory": 100_000_000}
        self._server = ForkedServer(model, tokenizer, data, self._log, **options)
        self.users = [User(self._server.url, f"user{n}", f"soak {seed} {n}", most_words=300) for n in range(users)]
        self._began = 0.0

    def run(self, seconds: float, round_seconds: float, lap_seconds: float = 30.0) -> Iterator[dict[str, Any]]:
        """A row for each lap; Wrong for anything that was lost, or came back, or fails.

        There are two rounds at least: one ends by a kill, one by a signal to stop.
        """
        try:
            yield from self._rounds(seconds, round_seconds, lap_seconds)
        finally:
            self._server.close()

    def _rounds(self, seconds: float, round_seconds: float, lap_seconds: float) -> Iterator[dict[str, Any]]:
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end or number < 2:
            number += 1
            self._start()
            how = signal.SIGKILL if number % 2 else signal.SIGTERM
            stop = min(end, time.monotonic() + round_seconds)
            while time.monotonic() < stop:
                self._lap(min(lap_seconds, stop - time.monotonic()))
                yield {"round": number, **self._figures(), "failures": self._failures()}
            self._stop_in_the_middle(how)
            documents = sum(user.check_disk(self._data) for user in self.users)
            yield {"round": number, "stopped_by": how.name, "documents_verified": documents, "failures": []}
        yield self._end()

    def _end(self) -> dict[str, Any]:
        """Every user deletes all: nothing is left, in the process or on the disk."""
        self._start()
        for user in self.users:
            user.delete()
            user.close()
        figures = self._figures()
        left = list((self._data / "contexts").glob("ctx-*"))
        failures = [f"{left} is left when all is deleted"] if left else []
        self._server.stop(signal.SIGTERM)
        counts: dict[str, int] = {}
        for user in self.users:
            for what, count in user.counts.items():
                counts[what] = counts.get(what, 0) + count
        return {**figures, "answers_by_status": dict(sorted(counts.items())), "failures": failures}

    def _lap(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._act(lambda: time.monotonic() < end)
        self._settle()

    def _settle(self) -> None:
        for user in self.users:
            user.settle()
        if found := strays(self._data):
            raise Wrong(f"{found} was left behind")

    def _stop_in_the_middle(self, how: int) -> None:
        """Stops the server while users act, until no answer comes any more."""
        timer = threading.Timer(1.0, self._server.stop, (how,))
        timer.start()
        try:
            self._act(lambda: True)
        finally:
            timer.join()

    def _act(self, more: Any) -> None:
        """All users act at once while there is `more` to do, or until the server answers no more."""
        wrong: list[BaseException] = []

        def act(user: User) -> None:
            try:
                while more() and not wrong:
                    user.act()
            except httpx.TransportError:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=act, args=(user,)) for user in self.users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]

    def _failures(self) -> list[str]:
        """Defects that the server's log tells of."""
        return ["a traceback in the server's log"] if "Traceback" in self._log.read_text(errors="replace") else []

    def _figures(self) -> dict[str, Any]:
        """What the server takes, as the system says, while nobody asks."""
        proc = Path("/proc", str(self._server.process))
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "since_start_s": round(time.monotonic() - self._began),
            "documents": sum(len(user.documents or {}) for user in self.users),
            "resident_mb": round(int(status["VmRSS"].split()[0]) * 1024 / 1e6, 1),
            "threads": int(status["Threads"]),
            "descriptors": len(os.listdir(proc / "fd")),
            "files": sum(len(names) for _, _, names in os.walk(self._data)),
            "disk_mb": round(bytes_in([self._data]) / 1e6, 2),
        }

    def _start(self) -> None:
        """A server that answers and holds what it must."""
        self._server.start()
        self._began = time.monotonic()
        for user in self.users:
            user.reconnect()
        self._settle()
