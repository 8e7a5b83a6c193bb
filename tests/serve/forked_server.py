"""A server in a process of its own that begins with the model loaded: to be killed, or to be watched."""

import faulthandler
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from serving import NAME
from users import Wrong

from landmark.serve.run import Address, listen, web_config
from landmark.serve.server import Server

_SECONDS = 240.0  # longest wait for a start


class ForkedServer:
    """One server on the folder `data`, started again and again at one address; its standard error goes to `log`.

    SIGUSR1 makes it write there where its threads are.
    """

    def __init__(self, model: Any, tokenizer: Any, data: Path, log: Path, **options: Any) -> None:
        self._reader, self._data, self._log, self._options = (model, tokenizer), data, log, options
        with listen(Address(port=0)) as free:
            self._address = Address(port=free.getsockname()[1], grace=1)
        self.url = f"http://127.0.0.1:{self._address.port}"
        self.process = 0

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        listening = listen(self._address)
        self.process = os.fork()
        if not self.process:
            self._be_the_server(listening)
        listening.close()
        end = time.monotonic() + _SECONDS
        while True:
            try:
                httpx.get(f"{self.url}/healthz", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                if os.waitpid(self.process, os.WNOHANG)[0] or time.monotonic() > end:
                    raise Wrong(f"the server did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.02)

    def stop(self, how: int = signal.SIGKILL) -> None:
        """Sends a signal and waits for the end; Wrong for another end than that by the signal."""
        process, self.process = self.process, 0
        os.kill(process, how)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -how:  # uvicorn passes SIGTERM on when all is closed
            raise Wrong(f"the server ended with {code}: {self._log.read_text()[-2000:]}")

    def close(self) -> None:
        """Ends it if it runs."""
        if self.process:
            self.stop()

    def show_threads(self) -> None:
        """Makes a server that hangs say where, in its log."""
        os.kill(self.process, signal.SIGUSR1)
        time.sleep(2)

    def _be_the_server(self, listening: Any) -> None:
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 2)
            faulthandler.register(signal.SIGUSR1, log)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray, where it ran in the tests before, has one of its own
            server = Server(*self._reader, NAME, data=self._data, **self._options)
            server.start()
            uvicorn.Server(web_config(server, self._address)).run(sockets=[listening])
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
