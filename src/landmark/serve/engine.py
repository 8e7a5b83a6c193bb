"""The engine: one thread that owns the model. Answers take turns; reading yields to them.

In a turn each row of a request that runs has one forward. Rows that decode share one, whatever they are asked about:
`together` computes it before the turns. A row that reads its prompt has a forward of its own, and without `together`
every row has. What an answer is does not depend on what runs beside it.

What a request needs before its first forward, an open context and the tokens of its prompt, is made beside that thread.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from landmark.serve.errors import Refusal, memory_taken, shutting_down, too_busy

log = logging.getLogger("landmark.serve")
T = TypeVar("T")
_BESIDE = 4  # threads that prepare requests
_SHARE = 9  # seconds that answers get for each second of reading, while there are any


class Work(Protocol):
    """A request that takes turns. Its methods are called by the engine's thread only, but `prepare`.

    `nbytes` is the memory that it takes while it runs; it is known when `prepare` has returned.
    """

    owner: str
    nbytes: int

    @property
    def rows(self) -> int:
        """Branches that it takes."""
        ...

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        ...

    @property
    def decoding(self) -> list[Any]:
        """Its rows whose next forward may be one with others."""
        ...

    def prepare(self) -> None:
        """Opens what it needs, in a thread beside the engine's."""
        ...

    def begin(self) -> None:
        """Makes its branches."""
        ...

    def step(self) -> bool:
        """One forward for each of its rows; whether there is more to do."""
        ...

    def fail(self, error: BaseException) -> None:
        """Reports an error; nothing else is called then, but `close`."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class ReadingWork(Protocol):
    """A job that reads documents. `run` calls `between` after each chunk, which may raise."""

    @property
    def owner(self) -> str: ...

    def run(self, between: Callable[[], None]) -> None: ...


class Paused(Exception):
    """Raised in a reading job when the engine stops: it goes on after the next start."""


class Engine:
    """Runs at most `most_rows` branches at a time; at most `most_waiting` requests wait for one.

    `together` computes the forward of the rows that decode, two or more, and raises nothing: an error is raised by the
    step of the request that it belongs to. None where the model cannot do that. `fits` says whether there is room in
    memory for so many bytes of requests that run.
    """

    def __init__(
        self,
        *,
        most_rows: int,
        most_waiting: int,
        together: Callable[[list[Any]], None] | None = None,
        fits: Callable[[int], bool] = lambda nbytes: True,
    ) -> None:
        self.most_rows = most_rows
        self.most_waiting = most_waiting
        self.running: list[Work] = []
        self.waiting: list[Work] = []  # in the order in which they came
        self.reading: list[ReadingWork] = []
        self.together = together
        self._fits = fits
        self._prepared: set[Work] = set()
        self._beside = ThreadPoolExecutor(_BESIDE, thread_name_prefix="beside")
        self._calls: list[tuple[Callable[[], object], Future]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = 0.0
        self._read_last: dict[str, float] = {}  # when a job of an owner began
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._chunk_began = 0.0

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, grace: float) -> None:
        """Ends the thread: reading pauses at its next chunk, answers get `grace` seconds to finish."""
        with self._changed:
            self._stopping, self._ended = True, time.monotonic() + grace
            self._changed.notify()
        self._thread.join(grace + 30)
        self._beside.shutdown(wait=False, cancel_futures=True)

    # Called by other threads.

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Runs `function` between two forwards."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopping:
                future.set_exception(shutting_down())
            else:
                self._calls.append((function, future))
                self._changed.notify()
        return future

    def submit(self, work: Work) -> None:
        """Lets a request wait for its turn; Refusal where too many do."""
        with self._changed:
            if self._stopping:
                raise shutting_down()
            if len(self.waiting) >= self.most_waiting:
                raise too_busy(1 + len(self.waiting) // self.most_rows)
            self.waiting.append(work)
        self._beside.submit(self._prepare, work)

    def _prepare(self, work: Work) -> None:
        ready = self._guarded(work, work.prepare) is not None
        with self._changed:
            if ready:
                self._prepared.add(work)
            else:
                self.waiting.remove(work)
            self._changed.notify()

    def read(self, job: ReadingWork) -> None:
        """Lets a job read when its turn comes."""
        with self._changed:
            self.reading.append(job)
            self._changed.notify()

    # The thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self.running or self._prepared or self._may_read() or self._stopping):
                    self._changed.wait()
                if self._stopping and (not self.running or time.monotonic() > self._ended):
                    break
            self._turn()
            if self._may_read():
                self._read()
        self._end()

    def _may_read(self) -> bool:
        return bool(self.reading) and not self._stopping

    def _turn(self) -> bool:
        """What was called for, and one forward of each running request; whether any runs."""
        self._run_calls()
        self._admit()
        self._end_those(lambda work: work.over)
        rows = [row for work in self.running for row in work.decoding]
        if self.together is not None and len(rows) > 1:
            self.together(rows)
        self._end_those(lambda work: work.over or not self._guarded(work, work.step))
        return bool(self.running)

    def _end_those(self, ends: Callable[[Work], bool]) -> None:
        """Frees the running requests that end, and asks each whether it does."""
        for work in list(self.running):
            if ends(work):
                self.running.remove(work)
                work.close()

    def _run_calls(self) -> None:
        with self._changed:
            calls, self._calls = self._calls, []
        for function, future in calls:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

    def _admit(self) -> None:
        """Begins waiting requests while there is room: those of the user that has the fewest running come first."""
        while (ready := self._ready()) and not self._stopping:
            rows = Counter[str]()
            for work in self.running:
                rows[work.owner] += work.rows
            work = min(ready, key=lambda one: rows[one.owner])  # of several the one that came first
            if rows.total() and rows.total() + work.rows > self.most_rows:
                return
            fits = self._fits(work.nbytes + sum(one.nbytes for one in self.running))  # closes idle contexts for it
            if rows.total() and not fits:
                return
            with self._changed:
                self.waiting.remove(work)
                self._prepared.remove(work)
            if not fits:
                work.fail(memory_taken())
            elif self._guarded(work, work.begin) is not None:
                self.running.append(work)
                continue
            work.close()

    def _ready(self) -> list[Work]:
        """The waiting requests that may begin, without those for which nobody waits any more."""
        with self._changed:
            ready = [work for work in self.waiting if work in self._prepared]
            gone = {work for work in ready if work.over}
            self.waiting = [work for work in self.waiting if work not in gone]
            self._prepared -= gone
        return [work for work in ready if work not in gone]

    def _guarded(self, work: Work, call: Callable[[], object]) -> object:
        """What `call` returns, True for nothing; None after an error, which is reported."""
        try:
            result = call()
        except Exception as error:
            if not isinstance(error, Refusal):
                log.exception("a request failed")
            work.fail(error)
            return None
        return True if result is None else result

    def _read(self) -> None:
        """Runs the reading job of the owner whose last one began longest ago."""
        with self._changed:
            job = min(self.reading, key=lambda one: self._read_last.get(one.owner, 0.0))
        self._chunk_began = self._read_last[job.owner] = time.monotonic()
        try:
            job.run(self._between_chunks)
        except Paused:
            log.info("reading pauses")
        except Exception:
            log.exception("a reading job failed")
        finally:
            with self._changed:
                self.reading.remove(job)

    def _between_chunks(self) -> None:
        """Answers' turns between two chunks of a reading job."""
        if self._stopping:
            raise Paused
        now = time.monotonic()
        until = now + _SHARE * (now - self._chunk_began)
        while self._turn() and time.monotonic() < until and not self._stopping:
            pass
        self._chunk_began = time.monotonic()

    def _end(self) -> None:
        for work in [*self.running, *self.waiting]:
            work.fail(shutting_down())
            work.close()
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(shutting_down())
