"""Bytes on disk."""

from collections.abc import Iterable
from pathlib import Path

from landmark.files import files_below


def bytes_in(folders: Iterable[Path]) -> int:
    """Bytes of all files in some folders; one file under several names counts once. Files may go meanwhile."""
    return sum(file.st_size for file in files_below(folders))
