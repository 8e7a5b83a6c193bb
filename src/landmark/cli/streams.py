"""Standard input, output and error as the shell left them: perhaps closed, full, or narrow."""

import io
import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST, WIDEST = 60, 200  # columns that text is laid out for, whatever the terminal or COLUMNS say
ELSEWHERE = 200  # columns where nobody's screen limits them


def prepare() -> None:
    """Fills in closed streams, so that no file that is opened gets their numbers.

    Raises ValueError where output is closed: every command's result would be lost.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        raise ValueError("standard output is closed: give the result a place, such as a file or /dev/null")
    warnings.formatwarning = lambda message, *_: f"landmark: warning: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an answer may have letters that the locale has not


def lost_output() -> str | None:
    """Why standard output cannot be written, None if it can; what was not written is dropped."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        drop_output()
        return f"standard output cannot be written: {error.strerror}"
    return None


def drop_output() -> None:
    """Sends standard output to nowhere: Python would complain again while flushing at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, stderr: bool = False) -> "Console":
    """A rich console on standard output, or error, at least `NARROWEST` columns wide."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    console = Console(stderr=stderr, highlight=False, width=None if stream.isatty() else ELSEWHERE)
    console.width = max(console.width, NARROWEST)
    # By itself rich would end the process when the reader of the output leaves.
    console.on_broken_pipe = raise_again
    return console


def raise_again() -> None:
    """Called while the error is handled."""
    raise
