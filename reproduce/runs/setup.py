"""The setting of a report: its folder, corpora, scale and machine."""

import os
import platform
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from landmark.assets import book_path
from landmark.data.text import read_text
from reproduce.trainings import small
from reproduce.trainings.small import Corpus

LENGTHS = (512, 2048, 4096)
SPAN = max(LENGTHS)


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured: `steps` of one training, `passkeys` prompts at one length."""

    steps: int
    windows: int
    passkeys: int
    seeds: tuple[int, ...]
    key_lengths: tuple[int, ...]
    quick: bool
    size: str = "small"


FULL = Scale(small.STEPS, windows=40, passkeys=50, seeds=(0, 1, 2), key_lengths=(512, 2048, 8192, 32768), quick=False)
# For a GPU: one seed of a model of 32 million parameters.
MEDIUM = replace(FULL, seeds=(0,), size="medium")
SCALES = {scale.size: scale for scale in (FULL, MEDIUM)}
# Fills every table with toy step counts; nothing is learnt.
QUICK = Scale(6, windows=2, passkeys=2, seeds=(0,), key_lengths=(512, 2048), quick=True)


@dataclass(frozen=True)
class Setup:
    """The folder `out` with all that is trained and measured, the corpora by name, and the scale."""

    out: Path
    corpora: dict[str, Corpus]
    scale: Scale
    threads: int | None = None

    @property
    def parameters(self) -> str:
        """Number of parameters of the models."""
        return small.PARAMETERS[self.scale.size]

    def fields(self) -> dict[str, Any]:
        """The circumstances recorded with every measurement."""
        fields = {"date": date.today().isoformat(), "machine": machine(), "parameters": self.parameters}
        return fields | ({"quick": True} if self.scale.quick else {})


def corpora(data: Path | None, out: Path) -> dict[str, Corpus]:
    """The corpora "books" and "math" in `data`; without it, for a dry run, parts of the package's book.

    Raises ValueError, naming the folder, where texts are missing.
    """
    if data is not None:
        return {name: Corpus.of(data / name) for name in ("books", "math")}
    folder = out / "stand_in"
    text = read_text(book_path())
    cuts = {"train": (0, 0.6), "validation": (0.6, 0.7), "test": (0.7, 1)}
    for part, (start, stop) in cuts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        piece = text[int(start * len(text)) : int(stop * len(text))]
        (folder / part / "book.txt").write_text(piece, encoding="utf-8")
    return dict.fromkeys(("books", "math"), Corpus.of(folder))


def machine() -> str:
    """The GPU, or the processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
