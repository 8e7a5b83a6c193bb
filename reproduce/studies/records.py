"""Records of a long measurement by key, in a log from which the same command resumes."""

from pathlib import Path
from typing import Any

from landmark.evaluation.log import Log


class Records:
    """What was measured so far, by key, in the file `path`; `settings` must determine every record.

    Raises ValueError as `Log` does.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._log = Log(path, settings, lambda line: (line.pop("key"), line))
        self.by_key: dict[str, dict[str, Any]] = dict(self._log.found)

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Appends a record."""
        self.by_key[key] = record
        self._log.add({"key": key, **record})
