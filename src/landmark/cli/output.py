"""Standard streams as the shell left them (closed, full, narrow); lines, tables and progress bars.

Names, paths, messages and texts come from files that anyone may have written. All that commands print of them goes
through `printable`: a terminal obeys control characters.
"""

import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

NARROWEST, WIDEST = 60, 200  # columns that text is laid out for, whatever the terminal or COLUMNS say
NO_TERMINAL = 200  # columns of files and pipes
SNIPPET = 160  # characters of an opened block
# Control characters (C0, C1), line and paragraph separators, those that turn the direction of text, halves of pairs.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def prepare() -> None:
    """Fills in closed streams, so that no file that is opened gets their numbers.

    Raises ValueError where standard output is closed: every command's result would be lost.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        raise ValueError("standard output is closed: redirect the result to a file, or to /dev/null")
    warnings.formatwarning = lambda message, *_: f"landmark: warning: {printable(str(message))}\n"
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
    console = Console(stderr=stderr, highlight=False, width=None if stream.isatty() else NO_TERMINAL)
    console.width = max(console.width, NARROWEST)
    # By itself rich would end the process when the reader of the output leaves.
    console.on_broken_pipe = _raise_again
    return console


def _raise_again() -> None:
    """Called while the error is handled."""
    raise


# Text.


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with control characters escaped as in Python; with `lines`, line ends and tabs stay."""
    kept = "\n\t" if lines else ""
    return CONTROL.sub(lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(), text)


def counted(number: int, thing: str) -> str:
    """A number of things, whose plural ends in s: "1 document", "1,234 documents"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size_text(size: int) -> str:
    """A number of bytes in kB, rounded up, or from a megabyte on in MB: "119 kB", "1,234.5 MB"."""
    return f"{-(-size // 1000)} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"


def print_escaped(text: str, *, lines: bool = False, to_stderr: bool = False, end: str = "\n") -> None:
    """Prints `printable` text at once, one line unless `lines` may be in it."""
    print(printable(text, lines=lines), end=end, flush=True, file=sys.stderr if to_stderr else sys.stdout)


def print_sources(sources: Iterable[dict[str, Any]]) -> None:
    """Prints blocks that were read for an answer: where each lies, its weight, and how it begins."""
    for source in sources:
        place = f"characters {source['first']}:{source['last']}, block {source['block']}"
        print_escaped("")
        again, weight = source.get("reread", False), source["weight"]
        found = f", weight {weight:.3f}" if weight or not again else ""  # it can be read again without being opened
        print_escaped(f"{source['document']}, {place}{found}{', read again' if again else ''}")
        print_escaped(f"  {' '.join(source['text'].split())[:SNIPPET]}")


def print_unread(tokens: int, context: Path) -> None:
    """Says that a context has tokens that were not read, and what reads them."""
    print_escaped(f"{counted(tokens, 'token')} more not read yet: run landmark append {context}", to_stderr=True)


@cache
def announce_compiling() -> None:
    """From now on a terminal hears, once, that loops are compiled: the first use on a machine waits for that."""
    from numba.core import event

    class Notice(event.Listener):
        def on_start(self, event: Any) -> None:
            if not said:
                said.append(True)
                print_escaped("compiling loops for this processor: once on a machine, half a minute", to_stderr=True)

        def on_end(self, event: Any) -> None:
            pass

    said: list[bool] = []
    if sys.stderr.isatty():
        event.register("numba:compile", Notice())


# Tables.


TITLES = {"peak_rss_mb": "peak memory, MB", "tokens_per_s": "tokens/s", "ms_per_query": "ms per query"}


def print_table(rows: Iterable[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Prints `rows` as a table on stdout; `TITLES` heads columns that JSON names otherwise."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*(TITLES.get(column, column) for column in columns))
    for row in rows:
        table.add_row(*(Text(printable(figure_text(row[column])) if column in row else "") for column in columns))
    console().print(table)


def figure_text(value: Any) -> str:
    """A figure with four digits; None is unknown."""
    if value is None:
        return "?"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# Progress bars on stderr, where it is a terminal.


@contextmanager
def tokens_read(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar over `total` tokens, if that is known; yields a function that moves it by so many."""
    from rich.progress import MofNCompleteColumn

    with _bar(description, total, MofNCompleteColumn()) as update:
        yield lambda tokens: update(advance=tokens)


@contextmanager
def bytes_done(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes, shown once there are some; yields a function that sets it to so many bytes of so many."""
    from rich.progress import DownloadColumn

    with _bar(description, None, DownloadColumn(), visible=False) as update:
        yield lambda done, total: update(completed=done, total=total, visible=True)


@contextmanager
def _bar(
    description: str, total: int | None, count: "ProgressColumn", *, visible: bool = True
) -> Iterator[Callable[..., None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), count, TimeRemainingColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not shown) as progress:
        task = progress.add_task(printable(description), total=total, visible=visible)
        yield lambda **changes: progress.update(task, **changes)
