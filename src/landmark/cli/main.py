"""Find the command that was named, read its options, run it, turn what went wrong into an exit code."""

import difflib
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_type_hints

from landmark import __version__
from landmark.cli import streams

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells report for Ctrl-C
READER_GONE = 1

EXAMPLES = """\
  landmark demo
  landmark read books/*.txt --out library && landmark ask library "What is the pass key? The pass key is "
  landmark tokenizer train books/*.txt --out runs/tokenizer
  landmark train --help"""


@dataclass(frozen=True)
class Command:
    """One line of ``landmark --help`` and the function behind it."""

    name: str
    target: str  # "module:function", imported when the command is chosen
    summary: str

    @property
    def words(self) -> list[str]:
        return self.name.split()

    def load(self) -> tuple[Callable[[Any], int], type]:
        """Import the command; return its function and the dataclass of its options."""
        module, function = self.target.split(":")
        run = getattr(import_module(module), function)
        return run, get_type_hints(run)["options"]


COMMANDS = (
    Command("demo", "landmark.cli.demo:run", "find a key hidden in a book, with the model in the package"),
    Command("generate", "landmark.cli.generate:run", "read a text of any length, then continue it"),
    Command("read", "landmark.cli.context:run_read", "read texts into a context on disk"),
    Command("append", "landmark.cli.context:run_append", "add texts to a context"),
    Command("ask", "landmark.cli.context:run_ask", "continue a prompt after a context, and show where it looked"),
    Command("contexts ls", "landmark.cli.contexts:run_ls", "list contexts"),
    Command("contexts info", "landmark.cli.contexts:run_info", "what a context holds, and how much"),
    Command("contexts verify", "landmark.cli.contexts:run_verify", "check every committed byte of a context"),
    Command("contexts delete", "landmark.cli.contexts:run_delete", "delete a context"),
    Command("contexts export", "landmark.cli.contexts:run_export", "write a context to one file"),
    Command("train", "landmark.cli.train:run", "train from scratch, or teach landmarks to a model"),
    Command("recipes", "landmark.cli.recipes:run", "list the recipes that train can be told by name"),
    Command("tokenizer train", "landmark.cli.tokenizer:run", "train a byte-level BPE tokenizer on texts"),
    Command("eval passkey", "landmark.cli.eval:run_passkey", "find keys hidden in long texts"),
    Command("eval perplexity", "landmark.cli.eval:run_perplexity", "perplexity of texts read through memory"),
    Command("report", "landmark.cli.report:run", "train and measure what the paper compares, and write the tables"),
    Command("bench ops", "landmark.cli.bench:run_ops", "time attention beside causal attention"),
    Command("bench read", "landmark.cli.bench:run_read", "time reading with a long text in memory"),
    Command("bench decode", "landmark.cli.bench:run_decode", "time decoding over contexts of any length"),
    Command("bench index", "landmark.cli.bench:run_index", "time search through landmark keys"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``landmark`` with ``argv`` (default: the arguments of the process) and return its exit code."""
    try:
        streams.prepare()
        arguments = list(sys.argv[1:] if argv is None else argv)
        check_arguments(arguments)
        code = dispatch(arguments)
        sys.stdout.flush()  # here, where what cannot be written can still be answered properly
        return code
    except KeyboardInterrupt:
        print(
            "landmark: interrupted; run the same command again and a job with an output folder resumes",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        streams.drop_output()  # the reader of our output (head, less) left
        return READER_GONE
    except (ValueError, OSError) as error:
        return fail(streams.lost_output() or str(error) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        return fail(f"there is not enough memory for that: give smaller numbers ({error})")


def dispatch(arguments: list[str]) -> int:
    """Run the command whose words lead ``arguments``; print help or the version where those are asked for."""
    if arguments == ["--version"]:
        print(versions())
        return 0
    for command in COMMANDS:
        if arguments[: len(command.words)] == command.words:
            return run_command(command, arguments[len(command.words) :])

    group = [c for c in COMMANDS if len(c.words) > 1 and c.words[:1] == arguments[:1]]
    rest = arguments[1:] if group else arguments
    if rest[:1] in (["--help"], ["-h"]):
        print(group_help(group) if group else program_help())
        return 0
    if not rest:
        print(group_help(group) if group else program_help(), file=sys.stderr)
        return USAGE_ERROR
    return fail(unknown_command(arguments, group))


def lacks_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has no error of its own for that on a CPU."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def check_arguments(arguments: list[str]) -> None:
    """Raises ValueError for arguments that no command takes: broken text, and options of nothing at all."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{argument!r} is not UTF-8: write it in UTF-8, and rename files that are not") from None
        name, value = argument.split("=", 1) if argument.startswith("--") and "=" in argument else (before, argument)
        if not value and name.startswith("--"):
            raise ValueError(f"the {name[2:]} is empty: say what it is, or leave {name} out")


def versions() -> str:
    """Return the releases of this package and of what it computes with, read from metadata: nothing is imported."""
    from importlib import metadata  # 20 ms that other commands need not wait for

    beside = []
    for name in ("torch", "transformers"):
        try:
            beside.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            beside.append(f"no {name}")
    return f"landmark {__version__} ({', '.join(beside)}, Python {platform.python_version()})"


def run_command(command: Command, arguments: list[str]) -> int:
    """Build the options of ``command`` from ``arguments``, check them and run it."""
    from landmark.cli.parsing import parse  # 0.2 s that ``landmark --help`` and ``--version`` need not wait for
    from landmark.limits import check_limits

    run, options_type = command.load()
    try:
        options = parse(options_type, f"landmark {command.name}", arguments)
    except SystemExit as end:
        sys.stdout.flush()  # help was printed
        if end.code:
            fail(str(end.code))
            raise SystemExit(USAGE_ERROR) from None
        raise
    check_limits(options)
    return run(options)


def program_help() -> str:
    """Return what ``landmark --help`` prints."""
    return f"""\
usage: landmark COMMAND [OPTIONS]

Landmark attention: a language model that reads texts of any length and looks up any part of them.

commands:
{listing(COMMANDS)}

examples:
{EXAMPLES}

`landmark COMMAND --help` lists the options of a command; `landmark --version` prints the version.
Exit codes: 0 done, 2 wrong use or unusable input, 130 interrupted; other failures show a traceback."""


def group_help(group: Sequence[Command]) -> str:
    """Return the help of commands that share their first word."""
    return f"usage: landmark {group[0].words[0]} COMMAND [OPTIONS]\n\ncommands:\n{listing(group)}"


def listing(commands: Sequence[Command]) -> str:
    """Return one indented line for each command, summaries aligned."""
    width = max(len(command.name) for command in commands)
    return "\n".join(f"  {command.name:{width}}  {command.summary}" for command in commands)


def unknown_command(arguments: list[str], group: Sequence[Command]) -> str:
    """Return a message that names the unknown command and the nearest known one."""
    typed = " ".join(arguments[: 2 if group else 1])
    names = [command.name for command in group or COMMANDS]
    near = difflib.get_close_matches(typed, names, n=1, cutoff=0.5)
    remedy = f"did you mean `landmark {near[0]}`?" if near else f"known are: {', '.join(names)}"
    return f"unknown command {typed!r}; {remedy}"


def fail(message: str) -> int:
    """Print ``message`` on one line of stderr, whatever line breaks it has; return the exit code."""
    with suppress(OSError):  # where nobody can be told, the code tells
        print(f"landmark: error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE_ERROR


if __name__ == "__main__":
    raise SystemExit(main())
