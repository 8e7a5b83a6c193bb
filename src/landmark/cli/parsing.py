"""Options from a command line, by tyro: help texts in groups at a readable width, error messages on one line.

A dataclass of options gives names, types, limits and help texts (the docstrings of its fields). Nested dataclasses and
TypedDicts, and the options that its `GROUPS` name, stand in boxes of their own in the help.
"""

import ast
import inspect
import io
import os
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_type_hints, is_typeddict

import tyro
from tyro.conf import OmitArgPrefixes, arg

from landmark.cli.output import NARROWEST, WIDEST
from landmark.limits import inner_type, is_group
from landmark.urls import path_of, url_of

MESSAGE_COLUMNS = 1000  # of a message that is put on one line afterwards
STYLE = re.compile(r"\x1b\[[0-9;]*m")
RULE = re.compile(r"^[─-]{3,}$", re.MULTILINE)  # dashes where a terminal has no lines
HINTS = ("Argument helptext", "For full helptext")
MISSING_OPTION = re.compile(r"^    (?! )(.*)$", re.MULTILINE)  # in tyro's list of them, each above its help text
WRONG_TYPE = re.compile(
    r"Error parsing (?P<option>\S+): no type matching (?P<kind>.+?) could be instantiated from \[(?P<value>.*?)\]\..*"
)
WRONG_NUMBER = re.compile(r"Error parsing (?P<option>\S+): .* (?P<kind>float|int\(\)).*: (?P<value>.*)")
WRONG_CHOICE = re.compile(
    r"invalid choice '(?P<value>.*)' for argument '(?P<option>\S+)'\. Expected one of \((?P<choices>.*)\)\."
)
NO_VALUE = re.compile(r"Missing value for argument '(?P<option>\S+)'\. Expected \d+ values?\.")
KINDS = {"INT": "a whole number", "INT()": "a whole number", "FLOAT": "a number"}
CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
NO_DEFAULTS = ("None", "False", "")  # of options whose help text describes the default


def parse(kind: type, prog: str, arguments: Sequence[str]) -> Any:
    """The options `kind`, a dataclass, that `arguments` describe.

    Raises SystemExit: with 0 after help was printed, and with the message where they describe none.
    """
    helping = any(argument in ("-h", "--help") for argument in arguments)
    terminal = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    message = io.StringIO()
    try:
        with _columns(terminal if helping else MESSAGE_COLUMNS), redirect_stderr(message):
            return _restored(kind, tyro.cli(_shown(kind), prog=prog, args=arguments, config=CONFIG))
    except SystemExit as end:
        raise SystemExit(_one_line(message.getvalue(), prog) if end.code else 0) from None


# Help. tyro parses a dataclass made for it, with help texts as single paragraphs and options in groups.


@cache
def _shown(kind: type, text: str | None = None) -> type:
    """The dataclass that tyro shows and parses in the place of `kind`, described by `text` or its docstring."""
    hints, texts = get_type_hints(kind, include_extras=True), _help_texts(kind)
    groups: dict[str, Sequence[str]] = getattr(kind, "GROUPS", {})
    group_of = {name: title for title, names in groups.items() for name in names}
    own: list[Any] = []
    grouped: dict[str, list[Any]] = {title: [] for title in groups}
    for name, default in _defaults(kind).items():
        inner = inner_type(hints[name])
        if is_group(inner):
            shown = _shown(inner, texts.get(name))
            option = (name, OmitArgPrefixes[shown], field(default_factory=shown))
        else:
            hint = hints[name] | None if is_typeddict(kind) else hints[name]
            hint = Annotated[hint, arg(help=texts.get(name), help_behavior_hint=_default_hint(default))]
            option = (name, hint, field(default=default))
        grouped.get(group_of.get(name, ""), own).append(option)
    for title, options in grouped.items():
        group = make_dataclass(title, options, kw_only=True, namespace={"__doc__": ""})
        own.append((title, OmitArgPrefixes[group], field(default_factory=group)))
    return make_dataclass(kind.__name__, own, kw_only=True, namespace={"__doc__": text or kind.__doc__})


def _restored(kind: type, shown: Any) -> Any:
    """The options `kind` with the values of what tyro parsed; a TypedDict has those that were given."""
    values = dict(vars(shown))
    for title in getattr(kind, "GROUPS", {}):
        values |= vars(values.pop(title))
    if is_typeddict(kind):
        return {name: value for name, value in values.items() if value is not None}
    hints = get_type_hints(kind)
    return kind(
        **{name: _restored(hints[name], v) if is_group(hints[name]) else _on_disk(v) for name, v in values.items()}
    )


def _on_disk(value: Any) -> Any:
    """A value; of paths of the form `file://` the path. ValueError for a URL of what ends with this process."""
    if isinstance(value, tuple):
        return tuple(map(_on_disk, value))
    if not isinstance(value, Path):
        return value
    url = url_of(value)
    if url is not None and url.startswith("memory:"):
        raise ValueError(f"{url} ends with the command: give a folder, or a URL such as s3://bucket/library")
    return path_of(value) if url is None else value


def _defaults(kind: type) -> dict[str, Any]:
    """Defaults by option, None for those of a TypedDict."""
    if is_typeddict(kind):
        return dict.fromkeys(get_type_hints(kind))
    return {option.name: option.default for option in fields(kind)}


def _default_hint(default: object) -> Any:
    """How tyro shows a default, where the help text does not explain it; of required options it shows that."""
    return None if default is MISSING else lambda label: "" if label in NO_DEFAULTS else f"(default: {label})"


def _help_texts(kind: type) -> dict[str, str]:
    """Docstrings of fields, those of bases included, each as one paragraph."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if is_group(base)]):
        (class_,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(class_, ast.ClassDef)
        for one, following in pairwise(class_.body):
            match one, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


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


# Errors.


def _one_line(box: str, prog: str) -> str:
    """The paragraphs of a box, but those that repeat the help, on one line."""
    lines = STYLE.sub("", box).splitlines()
    first = 1 if "╭" in box else 2  # without a frame, a rule is under the title
    inside = "\n".join(line[2:].rstrip("│ ") for line in lines[first:] if not line.startswith("╰"))
    paragraphs = [part.strip("\n") for part in RULE.split(inside)]
    message = [_short(part) for part in paragraphs if part.strip() and not part.strip().startswith(HINTS)]
    return f"{'; '.join(message)}; see {prog} --help"


def _short(paragraph: str) -> str:
    """A paragraph without help texts and the names of types in this program."""
    if paragraph.startswith("Missing from"):
        return f"missing: {', '.join(MISSING_OPTION.findall(paragraph))}"
    line = " ".join(paragraph.split())
    if found := WRONG_TYPE.fullmatch(line) or WRONG_NUMBER.fullmatch(line):
        return f"{found['option']} is {found['value']}: give {KINDS.get(found['kind'].upper(), found['kind'])}"
    if found := WRONG_CHOICE.fullmatch(line):
        choices = sorted(set(re.findall(r"'([^']*)'", found["choices"])) - {"None"})  # None is a default, no choice
        return f"{found['option']} is '{found['value']}': choose {' or '.join(choices)}"
    if found := NO_VALUE.fullmatch(line):
        return f"{found['option']} has no value: give one"
    return line
