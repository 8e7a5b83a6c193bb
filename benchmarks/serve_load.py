"""Load on a running `landmark serve`: clients that ask one question after another, and what they wait for."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from benchmarks.options import ServeLoadOptions
from landmark.cli.options import whole_numbers

Row = dict[str, Any]
PROMPT = "What is the pass key? The pass key is "


@dataclass
class Waits:
    """What the clients of one run saw, in seconds; `errors` by HTTP status."""

    first: list[float] = field(default_factory=list)
    next: list[float] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    errors: dict[int, int] = field(default_factory=dict)


def run(options: ServeLoadOptions) -> Iterator[Row]:
    """A row for each number of clients."""
    for clients in whole_numbers("clients", options.clients, most=1000):
        yield _measured(options, clients)


def _measured(options: ServeLoadOptions, clients: int) -> Row:
    waits, lock, end = Waits(), threading.Lock(), time.monotonic() + options.seconds
    memory, processor = _figure(options.url, "resident_memory_bytes"), _figure(options.url, "processor_seconds")
    began = time.monotonic()
    threads = [threading.Thread(target=_client, args=(options, end, waits, lock)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    if not waits.answers:
        raise ValueError(f"{options.url} gave no answer within {options.seconds} s ({waits.errors}): see its log")
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": waits.answers,
        "tokens_s": waits.tokens / seconds,
        "processor_ms_per_token": 1000 * (_figure(options.url, "processor_seconds") - processor) / waits.tokens,
        **_spread("first_token", waits.first),
        **_spread("per_token", waits.next),
        "errors": sum(waits.errors.values()),
        "resident_mb_before": memory / 1e6,
        "resident_mb": _figure(options.url, "resident_memory_bytes") / 1e6,
    }


def _spread(name: str, seconds: list[float]) -> Row:
    return {
        f"{name}_median_ms": 1000 * median(seconds) if seconds else None,
        f"{name}_p95_ms": 1000 * quantiles(seconds, n=20)[-1] if len(seconds) > 1 else None,
    }


def _client(options: ServeLoadOptions, end: float, waits: Waits, lock: threading.Lock) -> None:
    """Asks until the end; an answer that began before is finished."""
    while time.monotonic() < end:
        try:
            times = _ask(options)
        except HTTPError as error:
            with lock:
                waits.errors[error.code] = waits.errors.get(error.code, 0) + 1
            time.sleep(float(error.headers.get("Retry-After", 1)))
            continue
        with lock:
            waits.answers += 1
            waits.tokens += len(times) - 1
            waits.first.append(times[1] - times[0])
            waits.next += [after - before for before, after in pairwise(times[1:])]


def _ask(options: ServeLoadOptions) -> list[float]:
    """When a question was sent, and when each token came."""
    body = {"model": options.model, "prompt": PROMPT, "max_tokens": options.new_tokens, "stream": True}
    request = Request(f"{options.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    times = [time.monotonic()]
    with urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["finish_reason"] is None:
                times.append(time.monotonic())
    return times


def _figure(url: str, name: str) -> float:
    """A figure of the server, which it tells itself."""
    with urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"landmark_{name} "))
