"""What options may be: limits that stand beside their types, and the one place where they are checked.

A dataclass of options annotates a field, `depth: Annotated[float | None, Range(0, 1)] = None`, and `check_limits`
reports a value outside before any work starts. None is a default and always allowed. Light to import.
"""

import math
import os
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, is_dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

from landmark.urls import path_of, url_of

LARGEST = 10**12  # more than anything countable here; the machine's own numbers end far beyond


def is_whole(value: Any, least: int, most: float = math.inf) -> bool:
    """Whether this is a whole number from `least` to `most`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


class Limit(ABC):
    """What stands in an annotation."""

    @abstractmethod
    def check(self, name: str, value: Any) -> None:
        """Raises ValueError, naming the option and the remedy, for a value outside."""


@dataclass(frozen=True)
class Range(Limit):
    """Numbers from `least` to `most`, and 0 too if `or_zero`. Numbers that are not finite are in none.

    What is no number is outside, so that a function can check an argument of its callers.
    """

    least: float
    most: float = LARGEST
    words: str | None = None
    """What to give, where the numbers alone do not say it."""
    or_zero: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError, naming what to give, for anything outside."""
        number: Any = value
        if not isinstance(value, Real):
            raise ValueError(f"{name} is {value!r}: give {self.words or 'a number'}")
        if self.least <= number <= self.most or (self.or_zero and number == 0):
            return
        open_ended = self.most == LARGEST and not number > LARGEST
        numbers = f"{self.least} or more" if open_ended else f"a number from {self.least} to {self.most}"
        raise ValueError(f"{name} is {value}: give {self.words or numbers}")


@dataclass(frozen=True)
class OutFolder(Limit):
    """A folder to write to, which need not exist; nor its parents, if the command makes them."""

    makes_parents: bool = True
    or_url: bool = False
    """Whether it may lie on another file system."""

    def check(self, name: str, value: Path | str) -> None:
        """Raises ValueError where it can be seen that such a folder cannot be written."""
        if self.or_url and url_of(value) is not None:
            return
        value = path_of(value)
        if value.exists() and not value.is_dir():
            raise ValueError(f"{name} is {value}, which is a file: give a folder")
        if not self.makes_parents and not value.absolute().parent.exists():
            raise ValueError(f"{name} is {value}, in a folder that does not exist: make it, or give another")
        _check_writable(name, value)


@dataclass(frozen=True)
class LocalFolder(Limit):
    """A folder of this machine."""

    def check(self, name: str, value: Path) -> None:
        """Raises ValueError for a URL of another file system."""
        path_of(value)


@dataclass(frozen=True)
class OutFile(Limit):
    """A file to write, in a folder that exists, or `-` for standard output if the command takes that."""

    or_stdout: bool = False

    def check(self, name: str, value: Path | str) -> None:
        """Raises ValueError where it can be seen that such a file cannot be written."""
        if self.or_stdout and value == "-":
            return
        value = Path(value)
        if value.is_dir():
            raise ValueError(f"{name} is {value}, which is a folder: name a file")
        if not value.absolute().parent.is_dir():
            raise ValueError(f"{name} is {value}, in a folder that does not exist: make it, or give another")
        _check_writable(name, value)


SEEDS = Range(0, 2**32 - 1)  # what every generator of random numbers takes
Seed = Annotated[int, SEEDS]
Depth = Annotated[float | None, Range(0, 1, "0, the start of the book, to 1, its end")]
# Logits are divided by it: below, they exceed what numbers can hold.
TEMPERATURES = Range(1e-3, 1e3, "0 for the most likely tokens, or 0.001 to 1000 to sample", True)
Temperature = Annotated[float, TEMPERATURES]
Share = Annotated[float, Range(0, 1 - sys.float_info.epsilon, "a share of attention, 0 or more and less than 1")]
LearningRate = Annotated[float | None, Range(1e-12, 1e3, "a number above 0, such as 0.0003")]
Threads = Annotated[int | None, Range(1, 512)]
# Counts; None, where a field may be, is a default.
FromOne = Annotated[int, Range(1)]
FromZero = Annotated[int, Range(0)]
MaybeFromOne = Annotated[int | None, Range(1)]
MaybeFromZero = Annotated[int | None, Range(0)]


def inner_type(hint: Any) -> Any:
    """A type without what its annotation adds."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def is_group(kind: Any) -> bool:
    """Whether a type is options of its own: a dataclass or a TypedDict."""
    return is_dataclass(kind) or is_typeddict(kind)


def limits_of(kind: type) -> dict[str, list[Limit]]:
    """The limits in the annotations of a dataclass or TypedDict, by field; those of nested ones beside them."""
    found: dict[str, list[Limit]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        inner = inner_type(hint)
        if is_group(inner):
            found |= limits_of(inner)
        else:
            found[name] = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Limit)]
    return found


def check_limits(options: Any) -> None:
    """Raises ValueError, naming the option and the remedy, for the first value that is outside its limits."""
    values = _values(options)
    for name, limits in limits_of(type(options)).items():
        for limit in limits:
            if values.get(name) is not None:
                limit.check(name, values[name])


def _values(options: Any) -> dict[str, Any]:
    """Values by field, those of nested options beside them."""
    found: dict[str, Any] = {}
    for name, value in (options if isinstance(options, dict) else vars(options)).items():
        found |= _values(value) if is_dataclass(value) or isinstance(value, dict) else {name: value}
    return found


def _check_writable(name: str, path: Path) -> None:
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not path.exists() and not there.is_dir():
        raise ValueError(f"{name} is {path}, but {there} is a file: give another")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{name} is {path}, which cannot be written: {there} is read-only for you")
