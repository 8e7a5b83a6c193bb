"""A log of a long measurement in lines of JSON, from which the same command resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
EARLIER: dict[str, Any] = {"reread": 0, "heads": None}  # what logs that do not speak of these were made with


class Log(Generic[T]):
    """The file `path`: its first line holds the `settings`, which must determine all others, each an object.

    `found` are the lines that it had, each through `make`. An incomplete last line is dropped. Raises ValueError for a
    file of other settings (naming the difference), and for one with something else, which `make` raises TypeError or
    KeyError for; both are left unchanged.
    """

    def __init__(self, path: Path, settings: dict[str, Any], make: Callable[[dict[str, Any]], T]) -> None:
        self.path = path
        self.found: list[T] = []
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} does not exist: make it, or choose another file")
        data = path.read_bytes() if path.exists() else b""
        header = (json.dumps(settings) + "\n").encode()
        if header.startswith(data):  # new, empty, or incomplete in its first line
            path.write_bytes(header)
            return
        finished = data[: data.rfind(b"\n") + 1]
        first, *rest = self._lines(finished)
        self._check_settings(first, settings)
        try:
            self.found = [make(line) for line in rest]
        except (TypeError, KeyError):
            raise self._something_else() from None
        if finished != data:
            path.write_bytes(finished)

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise self._something_else()
        return lines

    def _check_settings(self, first: dict[str, Any], settings: dict[str, Any]) -> None:
        first, settings = EARLIER | first, EARLIER | settings
        for name in {**settings, **first}:
            if name not in first:
                raise ValueError(
                    f"{self.path} does not record the {name} it was made with, like logs of earlier releases:"
                    " choose another file or delete it"
                )
            if first.get(name) != settings.get(name):
                raise ValueError(
                    f"{self.path} was made with another {name} ({first.get(name)!r}, now {settings.get(name)!r}):"
                    " choose another file or delete it"
                )

    def _something_else(self) -> ValueError:
        return ValueError(f"{self.path} is not a log of this evaluation: choose another file")
