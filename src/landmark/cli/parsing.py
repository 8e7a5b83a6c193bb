"""Options from a command line: tyro's parsing, its messages on one line, its help at a width that it can lay out."""

import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import tyro

from landmark.cli.streams import NARROWEST, WIDEST

MESSAGE_COLUMNS = 1000  # of a message that is put on one line afterwards
STYLE = re.compile(r"\x1b\[[0-9;]*m")
RULE = re.compile(r"─{3,}")
HINTS = ("Argument helptext", "For full helptext")


def parse(kind: type, prog: str, arguments: Sequence[str]) -> Any:
    """The options `kind`, a dataclass, that `arguments` describe.

    Raises SystemExit: with 0 after help was printed, and with the message where they describe none.
    """
    helping = any(argument in ("-h", "--help") for argument in arguments)
    terminal = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    said = io.StringIO()
    try:
        with _columns(terminal if helping else MESSAGE_COLUMNS), redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as end:
        raise SystemExit(_message(said.getvalue(), prog) if end.code else 0) from None


@contextmanager
def _columns(number: int) -> Iterator[None]:
    """For tyro, which at a few columns wraps words without end, and takes memory without end for it."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _message(box: str, prog: str) -> str:
    """What a box says: its paragraphs, but those that repeat the help, on one line."""
    lines = [line.strip("│ ") for line in STYLE.sub("", box).splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = [" ".join(part.split()) for part in RULE.split("\n".join(lines))]
    told = [part for part in paragraphs if part and not part.startswith(HINTS)]
    return f"{'; '.join(told)}; see {prog} --help"
