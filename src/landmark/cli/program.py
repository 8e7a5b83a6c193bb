"""A program of several commands: find the one that was named, read its options, run it, turn errors into exit codes."""

import difflib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, get_type_hints

from landmark import __version__
from landmark.cli import output

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells report for Ctrl-C
READER_GONE = 1


@dataclass(frozen=True)
class Command:
    """One line of a program's help and the function behind it."""

    name: str
    target: str  # "module:function", imported when the command is chosen
    summary: str
    options: type | None = None  # their dataclass, where the module is too heavy to be imported for its hint

    @property
    def words(self) -> list[str]:
        return self.name.split()

    def load(self) -> tuple[Callable[[Any], int], type]:
        """Return the function and the dataclass of its options; where these are given, a call imports the function."""
        if self.options is not None:
            return lambda options: self._function()(options), self.options
        run = self._function()
        return run, get_type_hints(run)["options"]

    def _function(self) -> Callable[[Any], int]:
        module, function = self.target.split(":")
        return getattr(import_module(module), function)


@dataclass(frozen=True)
class Program:
    """A command line: its name, what it is for, its commands, examples of their use.

    `examples_of` are lines for the help of single commands, by name. `default` is the command that options without a
    command's name belong to.
    """

    name: str
    summary: str
    commands: tuple[Command, ...]
    examples: str
    examples_of: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    default: Command | None = None

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run with `argv` (default: the arguments of the process) and return the exit code."""
        try:
            output.prepare()
            arguments = list(sys.argv[1:] if argv is None else argv)
            check_arguments(arguments)
            code = self.dispatch(arguments)
            sys.stdout.flush()  # here, where an error is still reported
            return code
        except KeyboardInterrupt:
            print(
                "landmark: interrupted; run the same command again and a job with an output folder resumes",
                file=sys.stderr,
            )
            return INTERRUPTED
        except BrokenPipeError:
            output.drop_output()  # the reader of our output (head, less) left
            return READER_GONE
        except (ValueError, OSError) as error:
            return fail(output.lost_output() or str(error) or type(error).__name__)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            return fail(f"there is not enough memory for that: give smaller numbers ({error})")

    def dispatch(self, arguments: list[str]) -> int:
        """Run the command whose words lead `arguments`; print help or the version where those are asked for."""
        if arguments == ["--version"]:
            print(versions())
            return 0
        for command in self.commands:
            if arguments[: len(command.words)] == command.words:
                return self.run_command(command, arguments[len(command.words) :])

        group = [c for c in self.commands if len(c.words) > 1 and c.words[:1] == arguments[:1]]
        rest = arguments[1:] if group else arguments
        if rest[:1] in (["--help"], ["-h"]):
            print(self.group_help(group) if group else self.help())
            return 0
        if not rest:
            print(self.group_help(group) if group else self.help(), file=sys.stderr)
            return USAGE_ERROR
        if self.default is not None and rest[0].startswith("-"):
            return self.run_command(self.default, rest)
        return fail(self.unknown_command(arguments, group))

    def run_command(self, command: Command, arguments: list[str]) -> int:
        """Build the options of `command` from `arguments`, check them and run it."""
        from landmark.cli.parsing import parse  # 0.2 s that --help and --version need not wait for
        from landmark.limits import check_limits

        run, options_type = command.load()
        try:
            options = parse(options_type, f"{self.name} {command.name}".strip(), arguments)
        except SystemExit as end:
            if not end.code and command.name in self.examples_of:  # help was printed
                print("\nexamples:", *self.examples_of[command.name], sep="\n  ")
            sys.stdout.flush()
            if end.code:
                fail(str(end.code))
                raise SystemExit(USAGE_ERROR) from None
            raise
        check_limits(options)
        return run(options)

    def help(self) -> str:
        """What `--help` prints."""
        return f"""\
usage: {self.name} COMMAND [OPTIONS]

{self.summary}

commands:
{listing(self.commands)}

examples:
{self.examples}

`{self.name} COMMAND --help` lists the options of a command; `{self.name} --version` prints the version.
Exit codes: 0 done, 1 a wrong answer or damage was found, 2 wrong use or unusable input, 130 interrupted; any other
failure shows a traceback."""

    def group_help(self, group: Sequence[Command]) -> str:
        """The help of commands that share their first word."""
        return f"usage: {self.name} {group[0].words[0]} COMMAND [OPTIONS]\n\ncommands:\n{listing(group)}"

    def unknown_command(self, arguments: list[str], group: Sequence[Command]) -> str:
        """A message that names the unknown command and the nearest known one."""
        typed = " ".join(arguments[: 2 if group else 1])
        names = [command.name for command in group or self.commands]
        # Of commands that share their first word, the last decides.
        ends = {name.split()[-1] if group else name: name for name in names}
        near = [ends[end] for end in difflib.get_close_matches(typed.split()[-1], ends, n=1, cutoff=0.5)]
        remedy = f"did you mean `{self.name} {near[0]}`?" if near else f"known are: {', '.join(names)}"
        return f"unknown command {typed!r}; {remedy}"


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
            raise ValueError(f"the {name[2:]} is empty: give a value, or leave {name} out")


def versions() -> str:
    """Return the releases of this package and of what it computes with, read from metadata: nothing is imported."""
    from importlib import metadata  # 20 ms that other commands need not wait for

    releases = []
    for name in ("torch", "transformers"):
        try:
            releases.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            releases.append(f"no {name}")
    return f"landmark {__version__} ({', '.join(releases)}, Python {platform.python_version()})"


def listing(commands: Sequence[Command]) -> str:
    """Return one indented line for each command, summaries aligned."""
    width = max(len(command.name) for command in commands)
    return "\n".join(f"  {command.name:{width}}  {command.summary}" for command in commands)


def fail(message: str) -> int:
    """Print ``message`` on one line of stderr, whatever line breaks it has; return the exit code."""
    with suppress(OSError):  # if stderr is gone, the exit code remains
        output.print_escaped(f"landmark: error: {' '.join(message.split())}", to_stderr=True)
    return USAGE_ERROR
