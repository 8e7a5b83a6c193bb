"""Listening: uvicorn with the settings of this server, on loopback unless there are keys."""

import gc
import ipaddress
import logging
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from landmark.serve.app import create_app
from landmark.serve.server import Server

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where to listen, with which certificate, and how long answers may go on after the server was told to stop."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None
    names: tuple[str, ...] = ()
    grace: int = 30

    def check(self, *, has_keys: bool) -> None:
        """Raises ValueError for an address that others reach without keys, and for no usable certificate."""
        if not is_loopback(self.host) and not has_keys:
            raise ValueError(
                f"host is {self.host}, which other machines may reach, and there are no keys: make one with"
                " landmark serve --new-key NAME --keys FILE and give --keys FILE, or listen on 127.0.0.1"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("give --certificate and --private-key, both of them")
        for path in (self.certificate, self.private_key):
            if path is not None and not path.is_file():
                raise ValueError(f"{path} does not exist or is not a file")
        if self.certificate is not None:
            _check_certificate(self.certificate, self.private_key)

    @property
    def hosts(self) -> list[str] | None:
        """The names under which browsers may reach the server: those of loopback, or those that were given."""
        if is_loopback(self.host):
            return [*_LOOPBACK, *self.names]
        return list(self.names) or None


def _check_certificate(certificate: Path, private_key: Path | None) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, private_key, _no_password)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise ValueError(
            f"{certificate} and {private_key} are no certificate and its private key without a password ({error}):"
            " give PEM files that belong together"
        ) from error


def _no_password() -> str:
    raise ValueError("the key has a password")  # else OpenSSL asks for it on the terminal


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(address: Address) -> socket.socket:
    """A socket at the address; ValueError where it cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.host, address.port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ValueError(f"cannot listen on {address.host} port {address.port} ({error}): take another port") from error
    return listening


def serve(server: Server, address: Address, listening: socket.socket) -> None:
    """Serves, with a server that has started, until it is told to stop (SIGINT, SIGTERM). A second signal ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    gc.collect()
    gc.freeze()  # the search for cyclic garbage passes over the model and all modules from now on
    uvicorn.Server(web_config(server, address)).run(sockets=[listening])


def web_config(server: Server, address: Address) -> uvicorn.Config:
    """The settings of uvicorn for a server that has started."""
    return uvicorn.Config(
        create_app(server, hosts=address.hosts, grace=address.grace),
        # Not what else is installed decides (uvloop, httptools): bad requests are refused alike.
        loop="asyncio",
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=address.grace,
        ssl_certfile=address.certificate,
        ssl_keyfile=None if address.private_key is None else str(address.private_key),
    )
