"""Folders that are named by a URL: those of other file systems (`s3://bucket/library`), and `file://` for this machine.

Options and arguments are of type Path, which makes one slash of two; both forms are understood. Light to import.
"""

import os
import re
from pathlib import Path

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^/].*)", re.DOTALL)
_NO_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/*")
_HERE = ("file", "local")


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL of a folder on another file system, without slashes at its end; None for a path of this machine.

    Raises ValueError for a URL without a path.
    """
    if _NO_PATH.fullmatch(os.fspath(path)):
        raise ValueError(f"{path} is a URL without a path: name a folder, as in s3://bucket/library or file:///library")
    found = _URL.fullmatch(os.fspath(path))
    if found is None or found[1].lower() in _HERE:
        return None
    return f"{found[1].lower()}://{found[2].rstrip('/')}"


def path_of(path: str | os.PathLike[str]) -> Path:
    """A path of this machine, of which `file://` may be the form; ValueError for a URL of another file system."""
    if (url := url_of(path)) is not None:
        raise ValueError(f"{url} is on another file system: give a folder of this machine")
    found = _URL.fullmatch(os.fspath(path))
    return Path(path) if found is None else Path("/", found[2])


def shown(path: str | os.PathLike[str]) -> str:
    """The path or the URL, for messages."""
    return url_of(path) or str(path)
