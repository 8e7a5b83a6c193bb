"""Answered samples on disk, one line each, so that a long evaluation goes on where it was interrupted."""

import json
from pathlib import Path
from typing import Any

from landmark.evaluation.passkey import Sample


class Journal:
    """The file `path`: a first line with the `settings` of the evaluation, then a line for each sample.

    A run that was killed while writing leaves a line without an end; its sample is asked again. Raises
    ValueError when the file holds samples of other settings (naming the difference) or something else, and
    leaves it as it is.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.samples: dict[tuple[int, int], Sample] = {}
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder {self.path.parent} does not exist: make it, or choose another file")
        data = self.path.read_bytes() if self.path.exists() else b""
        header = (json.dumps(settings) + "\n").encode()
        if header.startswith(data):  # new, empty, or cut short in its first line
            self.path.write_bytes(header)
            return
        finished = data[: data.rfind(b"\n") + 1]
        first, *rest = self._lines(finished)
        for name in {**settings, **first}:
            if first.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} was made with another {name} ({first.get(name)!r}, now {settings.get(name)!r}):"
                    " choose another file or delete it"
                )
        for line in rest:
            sample = Sample(**line)
            self.samples[sample.length, sample.index] = sample
        if finished != data:
            self.path.write_bytes(finished)

    def add(self, sample: Sample) -> None:
        self.samples[sample.length, sample.index] = sample
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample.to_dict()) + "\n")

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"{self.path} is not a log of pass keys: choose another file")
        return lines
