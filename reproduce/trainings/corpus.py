"""A corpus: a folder of text files split into training, validation and test."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Corpus:
    """Text files of training, validation and test."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, folder: str | Path) -> "Corpus":
        """The files of `folder`/train, validation and test; raises ValueError where one of them has none."""
        folder = Path(folder)
        return cls(folder.name, *(text_files(folder / part) for part in ("train", "validation", "test")))


def text_files(folder: Path) -> tuple[str, ...]:
    """The files in `folder` by name; raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: put text files there, or name another folder")
    files = tuple(str(path) for path in sorted(folder.glob("*")) if path.is_file())
    if not files:
        raise ValueError(f"{folder} holds no text files: put some there, or name another folder")
    return files
