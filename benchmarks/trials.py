"""Trials of what something survives, part by part: a row for each trial, with what did not hold."""

import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]


class TrialOptions(Protocol):
    """Options that all trials have: the parts to run, where, and the seed."""

    @property
    def parts(self) -> str | None: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def seed(self) -> int: ...


def chosen(options: TrialOptions, known: Collection[str]) -> list[str]:
    """The parts named in "answers,forks", all `known` ones by default; raises ValueError for an unknown one."""
    names = list(known) if options.parts is None else options.parts.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"parts is {options.parts!r}, and there is no part {name!r}: known are {', '.join(known)}")
    return names


def run(options: TrialOptions, names: list[str], part: Callable[[str, Path], Iterator[Row]]) -> Iterator[Row]:
    """The rows that `part` gives for each of these names in an empty folder, with their times and the system.

    `failures` of a row describes what did not hold, each with its input.
    """
    system = {"python": platform.python_version(), "system": platform.platform(), "seed": options.seed}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in names:
            root = Path(folder, name)
            root.mkdir()
            started = time.perf_counter()
            for figures in part(name, root):
                seconds = round(time.perf_counter() - started, 1)
                yield {"trial": name, "failures": [], **figures, "trial_seconds": seconds, **system}
                started = time.perf_counter()
            shutil.rmtree(root)
