"""Records of a long measurement in a JSON-lines file, from which the same command resumes."""

import json
from pathlib import Path
from typing import Any


class Records:
    """What was measured so far, by key, in the file `path`.

    Its first line holds the `settings`, which must determine every record; each further line one record with its key.
    An incomplete last line is dropped. Raises ValueError for a file of other settings, naming the difference, or of
    something else, and leaves it unchanged.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.by_key: dict[str, dict[str, Any]] = {}
        header = (json.dumps(settings) + "\n").encode()
        data = path.read_bytes() if path.exists() else b""
        if header.startswith(data):  # new, or incomplete in its first line
            path.write_bytes(header)
            return
        finished = data[: data.rfind(b"\n") + 1]
        try:
            first, *rest = [json.loads(line) for line in finished.splitlines()]
            self.by_key = {line.pop("key"): line for line in rest}
        except (ValueError, KeyError, AttributeError):
            raise ValueError(f"{path} holds no records of this study: choose another file") from None
        for name in {**settings, **first}:
            if first.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} was made with another {name} ({first.get(name)!r}, now {settings.get(name)!r}): choose"
                    " another file or delete it"
                )
        if finished != data:
            path.write_bytes(finished)

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Appends a record."""
        self.by_key[key] = record
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **record}) + "\n")
