"""Answered samples on disk, one line each, so that a long evaluation goes on where it was interrupted."""

import json
from pathlib import Path
from typing import Any

from landmark.evaluation.passkey import Sample


class Journal:
    """The file `path`: a first line with the `settings` of the evaluation, then a line for each sample.

    Raises ValueError when the file holds samples of other settings (naming the difference) or something else.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.samples: dict[tuple[int, int], Sample] = {}
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder {self.path.parent} does not exist: make it, or choose another file")
        if not self.path.exists() or self.path.stat().st_size == 0:
            self._append(settings)
            return
        self._drop_unfinished_line()
        first, *rest = self._lines()
        for name in {**settings, **first}:
            if first.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} was made with another {name} ({first.get(name)!r}, now {settings.get(name)!r}):"
                    " choose another file or delete it"
                )
        for line in rest:
            sample = Sample(**line)
            self.samples[sample.length, sample.index] = sample

    def add(self, sample: Sample) -> None:
        self.samples[sample.length, sample.index] = sample
        self._append(sample.to_dict())

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _drop_unfinished_line(self) -> None:
        """A run that was killed while writing leaves a line without an end; its sample is asked again."""
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):
            with self.path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"{self.path} is not a log of pass keys: choose another file")
        return lines
