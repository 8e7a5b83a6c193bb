"""Options from a command line: nested groups, groups by name, help texts as paragraphs."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypedDict

import pytest
from tyro.conf import OmitArgPrefixes

from landmark.cli.parsing import STYLE, parse


class Changes(TypedDict, total=False):
    """What may be changed."""

    width: int
    """Width in
    columns."""
    name: str | None
    """Name."""


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner settings."""

    depth: int = 3
    """Depth."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """Options of several commands."""

    quiet: bool = False
    """Print nothing."""


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """A command."""

    GROUPS: ClassVar = {"rare": ("speed",)}

    files: tuple[str, ...] = ()
    """Files to read, one
    after the other."""
    speed: float | None = None
    """Speed; default: any."""
    colour: Literal["red", "green", "blue"] | None = None
    """Colour; default: any."""
    inner: OmitArgPrefixes[Inner] = field(default_factory=Inner)
    changes: OmitArgPrefixes[Changes] = field(default_factory=Changes)
    """Changes of settings."""


def test_options_are_those_of_the_dataclass():
    assert parse(Options, "x", []) == Options()
    given = ["--files", "a", "b", "--speed", "2", "--depth", "4", "--width", "5", "--quiet"]
    wanted = Options(files=("a", "b"), speed=2.0, inner=Inner(depth=4), changes={"width": 5}, quiet=True)
    assert parse(Options, "x", given) == wanted


def test_help_has_groups_and_paragraphs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        parse(Options, "x", ["--help"])
    assert end.value.code == 0
    printed = STYLE.sub("", capsys.readouterr().out)
    for line in ("Files to read, one after the other.", "Width in columns.", "Depth. (default: 3)", "Print nothing."):
        assert line in printed
    titles = [line.strip("╭─╮ ") for line in printed.splitlines()]  # the box is there where the terminal has one
    groups = [title for title in titles if title.endswith("options")]
    assert groups == ["options", "inner options", "changes options", "rare options"]
    assert printed.index("Changes of settings.") < printed.index("--width")
    assert "None" not in printed
    assert "False" not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--depth", "x"], "--depth is 'x': give a whole number"),
        (["--speed", "None"], "--speed"),
        (["--nope"], "Unrecognized options: --nope"),
        (["--colour", "grey"], "--colour is 'grey': choose blue or green or red"),
        (["--colour"], "--colour has no value: give one"),
    ],
)
def test_mistakes_are_one_line(arguments, said):
    with pytest.raises(SystemExit) as end:
        parse(Options, "x", arguments)
    assert said in str(end.value.code)
    assert str(end.value.code).endswith("see x --help")
    assert "\n" not in str(end.value.code)


def test_what_is_missing_is_named_without_its_help():
    @dataclass(frozen=True, kw_only=True)
    class Required:
        """Options."""

        out: str

    with pytest.raises(SystemExit) as end:
        parse(Required, "x", [])
    assert end.value.code == "missing: --out STR; see x --help"
