"""Bytes on disk."""

import os
from collections.abc import Iterable
from pathlib import Path


def bytes_in(folders: Iterable[Path]) -> int:
    """Bytes of all files in some folders; one file under several names counts once. Files may go meanwhile."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    found = os.lstat(os.path.join(root, name))
                except FileNotFoundError:
                    continue
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
