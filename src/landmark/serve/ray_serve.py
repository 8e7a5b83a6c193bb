"""The application in replicas behind Ray Serve, which starts, counts, checks and restarts them.

Each replica is a server of its own: model, engine, limits. What they share are the contexts they were given. A request
that names a session goes to the same replica as the others of that session, as long as it lives and has room.
"""

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig

from landmark.serve.app import create_app
from landmark.serve.run import Address
from landmark.serve.server import Limits, Server

NAME = "landmark"
_ROUTER: Any = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"  # by the header X-Session-Id
_OTHERS = 16  # requests beside answers that a replica takes: /healthz, lists, the page


@dataclass(frozen=True)
class Replicas:
    """How many there are, from `least` to `most` by how many answers run."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Replicas":
        """Those of "2" or "2:8"; raises ValueError for anything else."""
        least, _, most = text.partition(":")
        try:
            found = cls(int(least), int(most or least))
        except ValueError:
            found = cls(0, 0)
        if not 1 <= found.least <= found.most:
            raise ValueError(f"replicas is {text}: give a number, such as 4, or the least and the most, such as 2:8")
        return found


@serve.ingress()
class Replica:
    """One server, made by `build` where it runs."""

    def __init__(self, build: Callable[[], Server], hosts: Sequence[str] | None, grace: float) -> None:
        self._server = build()
        self._server.start()
        self._hosts = hosts
        self._grace = grace

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._server, hosts=self._hosts, grace=self._grace)

    def check_health(self) -> None:
        """Raises where the engine does not live any more: Ray then puts another replica in the place of this one."""
        if not self._server.engine.alive:
            raise RuntimeError("the engine has ended")


def application(
    build: Callable[[], Server], address: Address, replicas: Replicas, limits: Limits, resources: dict[str, Any]
) -> serve.Application:
    """The application for `serve.run`. A replica has as many answers at once as `limits` of one server allow."""
    deployment: Any = serve.deployment(
        Replica,
        name=NAME,
        ray_actor_options=resources,
        max_ongoing_requests=limits.running + limits.waiting + _OTHERS,  # beyond, the server itself says 429
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.least, max_replicas=replicas.most, target_ongoing_requests=limits.running
        ),
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        graceful_shutdown_timeout_s=address.grace,
        health_check_timeout_s=60,
    )
    return deployment.bind(build, address.hosts, address.grace)


def run(
    build: Callable[[], Server], address: Address, replicas: Replicas, limits: Limits, resources: dict[str, Any]
) -> None:
    """Serves on the cluster that this process is connected to, until SIGINT or SIGTERM, and ends the replicas.

    Raises ValueError where no replica starts, and where the cluster serves this application already.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    serve.start(proxy_location="EveryNode", http_options=HTTPOptions(host=address.host, port=address.port))
    if NAME in serve.status().applications:
        raise ValueError(f"the cluster serves an application named {NAME} already: end the command that started it")
    try:
        serve.run(application(build, address, replicas, limits, resources), name=NAME)
        ended.wait()
    except RuntimeError as error:
        raise ValueError(f"no replica started: {str(error).splitlines()[-1]}") from error
    finally:
        serve.delete(NAME)
        if not serve.status().applications:  # others may serve on the same cluster
            serve.shutdown()
