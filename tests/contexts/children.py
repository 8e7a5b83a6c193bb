"""Commands of `landmark` in processes of their own that begin with the model loaded: to be killed, or to be watched."""

import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from faults import CALLS

import landmark
from landmark.cli.main import main
from landmark.contexts import disk

LIMIT = 60.0  # seconds; a command that takes longer hangs
TRACEBACK = 99  # exit code
_LAZY = (
    "landmark.cli.ask",
    "landmark.cli.read",
    "landmark.cli.contexts",
    "landmark.cli.parsing",
    "tyro",
    "rich.progress",
)


class Ran(NamedTuple):
    """How a process ended: its exit code, minus a signal's number if that ended it; what it printed; what it took."""

    code: int
    out: str
    error: str
    seconds: float
    cpu_seconds: float
    disk_calls: int
    peak_bytes: int  # of memory, at most


@contextmanager
def loaded(model_folder: Path) -> Iterator[Any]:
    """The model in a folder, loaded once: commands that load it from there get this one."""
    model, usual = landmark.from_pretrained(model_folder), landmark.hf.from_pretrained

    def load(folder: Path, *arguments: Any, **keywords: Any) -> Any:
        return model if Path(folder) == model_folder else usual(folder, *arguments, **keywords)

    for name in _LAZY:
        import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # silent in a forked process
        patch.setattr("landmark.hf.model_files.from_pretrained", load)
        yield model


def command(*arguments: object) -> Callable[[], int]:
    """A command line of `landmark`."""
    return lambda: main([str(argument) for argument in arguments])


def run(
    call: Callable[[], object], scratch: Path, *, kill_after: float | None = None, kill_at: int | None = None
) -> Ran:
    """Runs `call` in a process; SIGKILL after so many seconds, or before call number `kill_at` (from 1) to the disk.

    Its output goes through files in the folder `scratch`.
    """
    calls = mmap.mmap(-1, 8)  # shared with the process
    with open(scratch / "out", "w+b") as out, open(scratch / "error", "w+b") as error:
        started = time.perf_counter()
        process = os.fork()
        if not process:
            _be_the_child(call, out, error, calls, kill_at)
        code, used = _wait(process, LIMIT if kill_after is None else kill_after)
        seconds, cpu_seconds = time.perf_counter() - started, used.ru_utime + used.ru_stime
        number, peak = int.from_bytes(calls[:8], "little"), used.ru_maxrss * 1024
        return Ran(code, _text(out), _text(error), seconds, cpu_seconds, number, peak)


def _be_the_child(call: Callable[[], object], out: IO[bytes], error: IO[bytes], calls: mmap.mmap, kill_at: int | None):
    code: object = TRACEBACK
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(error.fileno(), 2)
        _count(calls, kill_at)
        _standard_streams()
        code = call() or 0
    except ValueError as refused:  # of a function, as the command line has it
        os.write(2, f"landmark: error: {' '.join(str(refused).split())}\n".encode())
        code = 2
    except SystemExit as end:
        code = end.code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else TRACEBACK)


def _standard_streams() -> None:
    """Those of the process, not what the parent put in their place."""
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115


def _count(calls: mmap.mmap, kill_at: int | None) -> None:
    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            number = int.from_bytes(calls[:8], "little") + 1
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[:8] = number.to_bytes(8, "little")
            return function(*arguments, **keywords)

        return call

    for name in CALLS:
        setattr(disk, name, watched(getattr(disk, name)))


def _wait(process: int, seconds: float) -> tuple[int, resource.struct_rusage]:
    """The exit code of a process that gets so many seconds, and what it used."""
    until, found = time.perf_counter() + seconds, 0
    while not found and time.perf_counter() < until:
        found, status, used = os.wait4(process, os.WNOHANG)
        if not found:
            time.sleep(0.001)
    if not found:
        os.kill(process, signal.SIGKILL)
        _, status, used = os.wait4(process, 0)
    return os.waitstatus_to_exitcode(status), used


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


def own_peak() -> int:
    """The most memory, in bytes, that this process had: the least that `peak_bytes` of a child can be."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
