"""Figures for Prometheus. No label names a context, a key or a text."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from landmark.process_memory import resident_bytes
from landmark.store.base import Traffic

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "landmark_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.tokens = Counter(
            "landmark_tokens", "Tokens: cached, prompt, completion, read", ["kind"], registry=registry
        )
        self.first = Histogram(
            "landmark_time_to_first_token_seconds",
            "From the arrival of a request to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.next = Histogram(
            "landmark_time_per_token_seconds", "Between two tokens of a choice", buckets=_SECONDS, registry=registry
        )
        self.blocks = Counter(
            "landmark_blocks", "Blocks that queries wanted, by where they were found", ["found"], registry=registry
        )
        self.watch("landmark_resident_memory_bytes", "Resident memory of the server", resident_bytes)
        self.watch("landmark_processor_seconds", "Processor time that the server took, all threads", time.process_time)

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A figure that is asked for when Prometheus comes."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def count_tokens(self, cached: int, prompt: int, completion: int) -> None:
        for kind, tokens in (("cached", cached), ("prompt", prompt), ("completion", completion)):
            self.tokens.labels(kind).inc(tokens)

    def count_blocks(self, traffic: Traffic) -> None:
        self.blocks.labels("memory").inc(traffic.cache_hits)
        self.blocks.labels("disk").inc(traffic.cache_misses)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)
