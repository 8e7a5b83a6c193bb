"""A soak: users do all that users do for a long time, in laps; the server is stopped and killed between rounds of them.

A lap ends when all jobs are done: what the server then takes, memory, threads, descriptors and files, can be compared.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from serving import NAME
from users import User, Wrong, strays

from landmark.serve.disk_space import bytes_in
from landmark.serve.run import Address, listen

_START = 240.0  # longest wait for a start, in seconds


class Soak:
    """A server of its own process with the model in a folder, on the folder `data`, and its users."""

    def __init__(self, model: Path, data: Path, seed: int, *, users: int) -> None:
        self._data, self._log = data, data.parent / "server.log"
        with listen(Address(port=0)) as free:
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        options = ["--data", data, "--name", NAME, "--port", port, "--threads", 1, "--host-budget", "4MB"]
        command = [sys.executable, "-m", "landmark.cli.main", "serve", "--model", model, *options]
        self._command = [str(part) for part in command]
        self.users = [User(self._url, f"user{n}", f"soak {seed} {n}", most_words=300) for n in range(users)]
        self._began = 0.0

    def run(self, seconds: float, round_seconds: float, lap_seconds: float = 30.0) -> Iterator[dict[str, Any]]:
        """A row for each lap; Wrong for anything that was lost, or came back, or fails."""
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            number += 1
            process = self._start()
            try:
                stop = min(end, time.monotonic() + round_seconds)
                while time.monotonic() < stop:
                    self._lap(min(lap_seconds, stop - time.monotonic()))
                    yield {"round": number, **self._figures(process), "failures": self._failures()}
            finally:
                how = signal.SIGKILL if number % 2 else signal.SIGTERM
                if how == signal.SIGTERM or time.monotonic() < end:
                    self._act_while(partial(process.send_signal, how))  # in the middle of things
                process.kill()
                process.wait()
            documents = sum(user.check_disk(self._data) for user in self.users)
            yield {"round": number, "stopped_by": how.name, "documents_verified": documents, "failures": []}
        yield self._end()

    def _end(self) -> dict[str, Any]:
        """Every user deletes all: nothing is left, in the process or on the disk."""
        process = self._start()
        try:
            self._settle()
            for user in self.users:
                user.delete()
                user.close()
            figures = self._figures(process)
            left = list((self._data / "contexts").glob("ctx-*"))
            failures = [f"{left} is left when all is deleted"] if left else []
        finally:
            process.terminate()
            process.wait()
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

    def _act_while(self, stop: Any) -> None:
        """Users act until no answer comes any more, which `stop` sees to."""
        timer = threading.Timer(1.0, stop)
        timer.start()
        self._act(lambda: True)
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

    def _figures(self, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
        """What the server takes, as the system says, while nobody asks."""
        proc = Path("/proc", str(process.pid))
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

    def _start(self) -> "subprocess.Popen[bytes]":
        """A server that answers and holds what it must."""
        with self._log.open("w") as log:
            process = subprocess.Popen(self._command, stderr=log)
        end = time.monotonic() + _START
        while True:
            try:
                httpx.get(f"{self._url}/healthz", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > end:
                    process.kill()
                    raise Wrong(f"the server did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.1)
        self._began = time.monotonic()
        for user in self.users:
            user.reconnect()
        self._settle()
        return process
