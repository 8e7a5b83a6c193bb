"""Flipped bits met by what a user does: open, ask, read what was added and not read yet. None is read silently."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flips import committed_byte
from forking import PROMPT, logits
from killed_commands import write_texts

from landmark import Context
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify

UNUSED, NAMED = "unused", "named"


@dataclass(frozen=True)
class Outcome:
    """`UNUSED`, `NAMED`, or what went wrong, of a flip at an offset of a file."""

    region: str
    file: str
    offset: int
    bit: int
    outcome: str

    @property
    def held(self) -> bool:
        """Whether the damage was found, or the byte was not used."""
        return self.outcome in (UNUSED, NAMED)


class Trial:
    """A context in the folder `root` with documents that the model has read and others that wait."""

    def __init__(self, model: Any, root: Path) -> None:
        self.model = model
        self._whole, self._copy = root / "whole", root / "copy"
        root.mkdir()
        texts = [(file.stem, file.read_text(encoding="utf-8")) for file in write_texts(root / "texts", 4, 120)]
        long = ("long", "it was a calm sea and jim looked at the ships . " * 60)  # of several parts
        with Context.create(self._whole, model) as context:
            context.append(texts[0][1], texts[0][0])
            context.append(texts[1][1], texts[1][0])
            context.add([texts[2], long, texts[3]])
        self.expected = self._use(self._fresh())

    def flip(self, region: str, draw: random.Random) -> Outcome:
        """Flips a random committed bit of a region (flips.REGIONS) in a copy, and uses that."""
        path = self._fresh()
        file, offset = committed_byte(open_reader(path), region, draw)
        bit = draw.randrange(8)
        data = bytearray(file.read_bytes())
        data[offset] ^= 1 << bit
        file.write_bytes(data)
        return Outcome(region, file.name, offset, bit, self._outcome(path, file))

    def _outcome(self, path: Path, file: Path) -> str:
        try:
            found = self._use(path)
        except (ValueError, OSError) as error:
            return NAMED if file.name in str(error) else f"the error does not name the file: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if found != self.expected:
            return "read silently: " + ", ".join(name for name in found if found[name] != self.expected[name])
        if file.name not in {damage.file.name for damage in verify(path)}:
            return "not used, but verify does not find it afterwards"
        return UNUSED

    def _fresh(self) -> Path:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._whole, self._copy)
        return self._copy

    def _use(self, path: Path) -> dict[str, Any]:
        """What opening, asking, reading on and asking again give."""
        with Context.open(path, self.model, write=True) as context:
            before = context.generate(PROMPT, max_new_tokens=3)
            names = [document.name for document in context.documents]
            context.read()
            after = context.generate(PROMPT, max_new_tokens=3)
            return {
                "documents": names,
                "answers": (before.ids, after.ids),
                "sources": (before.sources, after.sources),
                "logits": logits(context).numpy().tobytes(),
            }
