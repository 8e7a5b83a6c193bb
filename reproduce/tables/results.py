"""The measurements behind a report, kept as JSON lines.

Every line holds

- `table` (one of `names.TABLES`), `method`, `read_length` (ordinary tokens), `seed`, `steps` (of training);
- its settings, where they matter: the fields of `SETTINGS`. With the fields above they are the key of the line;
- what was measured, one of
    - `perplexity`, with `se` (standard error of nats a token, from the scatter over windows; null for a single one) and
      `samples` (windows),
    - `accuracy` (0 to 1), with `samples` (prompts),
    - `difference`, in nats a token, to the method `against` on the same targets (below 0: `method` is better), with
      `difference_se` (or null) and `samples` (windows). Settings that differ from those of the line itself are given
      as `against_SETTING`, for example `against_read_length`,
    - none of them, but `tokens_per_second` or `memory_mb`;
- anything else, kept as given: `attended`, `skipped` (share of retrievals), `machine`, `parameters`, `date`,
  `quick`, ...
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from landmark.settings import current_names
from reproduce.tables.names import BASE_MODEL, CORPORA, PASSKEY, RETRIEVE, TABLES

Line = dict[str, Any]

REQUIRED: dict[str, type] = {"table": str, "method": str, "read_length": int, "seed": int, "steps": int}
SETTINGS = (
    "corpus",
    "model",
    "window",  # ordinary tokens of a training window
    "local",  # ordinary tokens of a chunk, or of a window for methods without memory
    "local_blocks",
    "cache",  # positions carried from segment to segment, as by Transformer-XL
    "retrieve",
    "blocks",  # blocks kept in memory at most
    "selection",
    "block_size",
    "threshold",
    "positions",
    "targets",  # positions scored in each window of 512; all but the first without it
    "block_dropout",
    "depth",  # of the key in the text, 0 to 1: where its tenth begins
    "tokens_trained",
)
KEY = (*REQUIRED, *SETTINGS, "against", *(f"against_{name}" for name in ("read_length", "steps", *SETTINGS)))

# Values of earlier releases under the names of today, by field.
RENAMED = {
    "table": {"top_k": RETRIEVE, "pass_key": PASSKEY},
    "method": {"plain ancestor": BASE_MODEL},
    "against": {"plain ancestor": BASE_MODEL},
}

# What makes two lines of one key differ.
FIGURES = {
    "perplexity": ("perplexity", "se", "samples"),
    "accuracy": ("accuracy", "samples"),
    "difference": ("difference", "difference_se", "samples"),
    "cost": ("tokens_per_second", "memory_mb"),
}
NUMBERS = ("perplexity", "se", "accuracy", "difference", "difference_se", "attended", "skipped", *FIGURES["cost"])


class Results:
    """The measurements in the file `path`, in the order in which they were added; a missing file holds none.

    A line that was cut short by a kill is left out, and removed when the next measurement is added: reading alone never
    changes the file. Raises ValueError when the folder does not exist, a whole line is no measurement (see the top
    of this module), or two lines of one key differ in what was measured.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lines: list[Line] = []
        self._by_key: dict[tuple[Any, ...], Line] = {}
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder {self.path.parent} does not exist: make it, or choose another file")
        data = self.path.read_bytes() if self.path.exists() else b""
        *whole, cut = data.split(b"\n")
        self._size = len(data) - len(cut)
        for number, text in enumerate(whole, 1):
            where = f"{self.path}, line {number}"
            self._keep(check(_parse(text, where), where), where)

    def add(self, measurement: Line) -> None:
        """Adds a line to the file, which is on disk when this returns.

        What is there already with the same values is not written again. Raises ValueError for a measurement that is
        incomplete or contradicts one of the same key, and when somebody else has added to the file meanwhile.
        """
        if self._keep(check(measurement, "the measurement"), str(self.path)):
            data = json.dumps(measurement, allow_nan=False).encode() + b"\n"
            with self.path.open("a+b") as file:
                file.seek(self._size)
                tail = file.read()
                if b"\n" in tail:
                    raise ValueError(f"{self.path} has grown meanwhile: let one run at a time write to it")
                file.truncate(self._size)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._size += len(data)

    def find(self, **fields: Any) -> list[Line]:
        """The lines with these values; None finds lines without the field, too."""
        return [line for line in self.lines if matches(line, fields)]

    def has(self, **fields: Any) -> bool:
        return bool(self.find(**fields))

    def _keep(self, line: Line, where: str) -> bool:
        """Whether the line is new."""
        kind = kind_of(line)
        key = (kind, *(line.get(name) for name in KEY))
        known = self._by_key.get(key)
        if known is None:
            self._by_key[key] = line
            self.lines.append(line)
            return True
        for name in FIGURES[kind]:
            if known.get(name) != line.get(name):
                fields = {name: line[name] for name in KEY if line.get(name) is not None}
                raise ValueError(
                    f"{where}: {name} is {line.get(name)!r}, but was {known.get(name)!r} before,"
                    f" with the same {fields}: delete one of the lines, or start a new file"
                )
        return False


def matches(line: Line, fields: Line) -> bool:
    return all(line.get(name) == value for name, value in fields.items())


def kind_of(line: Line) -> str:
    """What a checked line measures: a name in `FIGURES`."""
    if "against" in line:
        return "difference"
    return next((kind for kind in ("perplexity", "accuracy") if kind in line), "cost")


def check(line: Line, where: str) -> Line:
    """The line itself; raises ValueError, beginning with `where`, if it is no measurement."""
    for name, kind in REQUIRED.items():
        if type(line.get(name)) is not kind:
            raise ValueError(f"{where}: {name} is {line.get(name)!r}: give {kind.__name__}")
    _check_one_of(line, "table", TABLES, where)
    _check_one_of(line, "corpus", (None, *CORPORA), where)
    for name in NUMBERS:
        value = line.get(name)
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise ValueError(f"{where}: {name} is {value!r}: give a finite number")
    kind = kind_of(line)
    if kind == "cost":
        if line.get("tokens_per_second") is None and line.get("memory_mb") is None:
            raise ValueError(f"{where} measures nothing: give perplexity, accuracy, tokens_per_second or memory_mb")
        return line
    if line.get(kind) is None:
        raise ValueError(f"{where}: {kind} is missing")
    if kind == "perplexity" and ("accuracy" in line or line["perplexity"] < 1):
        raise ValueError(f"{where}: give a perplexity of at least 1, and an accuracy in a line of its own")
    if kind == "accuracy" and not 0 <= line["accuracy"] <= 1:
        raise ValueError(f"{where}: accuracy is {line['accuracy']}: give a share from 0 to 1")
    for name in FIGURES[kind]:
        if name not in line:
            raise ValueError(f"{where}: {name} is missing{', give null if unknown' if name.endswith('se') else ''}")
        if name.endswith("se") and line[name] is not None and line[name] < 0:
            raise ValueError(f"{where}: {name} is {line[name]}: give 0 or more")
    if type(line["samples"]) is not int or line["samples"] < 1:
        raise ValueError(f"{where}: samples is {line['samples']!r}: give 1 or more")
    return line


def _check_one_of(line: Line, name: str, known: tuple[str | None, ...], where: str) -> None:
    if line.get(name) not in known:
        names = ", ".join(value for value in known if value is not None)
        raise ValueError(f"{where}: {name} is {line[name]!r}: give one of {names}")


def _parse(text: bytes, where: str) -> Line:
    try:
        line = json.loads(text, object_hook=current_names)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}): delete the line, or choose another file") from error
    if not isinstance(line, dict):
        raise ValueError(f"{where} is not a JSON object: delete the line, or choose another file")
    return _renamed(line)


def _renamed(line: Line) -> Line:
    """A line written by an earlier release, under the names of today."""
    if "weights" in line:
        line["parameters"] = line.pop("weights")
    for field, values in RENAMED.items():
        if line.get(field) in values:
            line[field] = values[line[field]]
    for field in ("model", "against_model"):
        if isinstance(line.get(field), str) and line[field].endswith("M weights"):
            line[field] = line[field].removesuffix("weights") + "parameters"
    return line
