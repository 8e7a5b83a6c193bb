"""What commands print of names, paths, messages and texts that anyone may have written."""

import json
import sys
import warnings

import numba
import pytest

from landmark.cli import main as cli
from landmark.cli.output import announce_compiling, counted, prepare, print_escaped, print_table, printable, size_text

EVIL = "\x1b]0;owned\x07\x1b[2Jbook\r\n\u202etxt\u2066\x9b31m\udcff"
SAFE = r"\x1b]0;owned\x07\x1b[2Jbook\r\n\u202etxt\u2066\x9b31m\udcff"


def test_control_characters_are_escaped():
    assert printable(EVIL) == SAFE
    assert printable("a\tb\nc\rd", lines=True) == "a\tb\nc\\rd"
    plain = "Ünïcode, 漢字, עברית, 👩‍👩‍👧 and \\ [red]markup[/red]"
    assert printable(plain) == plain


def test_lines_warnings_and_tables(capsys):
    print_escaped(EVIL)
    prepare()
    assert warnings.formatwarning(EVIL, UserWarning, "file", 1) == f"landmark: warning: {SAFE}\n"
    print_table([{"name": "[bold]" + EVIL[:4]}], ("name",))
    output = capsys.readouterr()
    assert output.out.startswith(SAFE + "\n")
    assert r"[bold]\x1b]0;" in output.out
    assert "\x1b" not in output.out


def test_one_thing_and_more():
    assert [counted(number, "document") for number in (0, 1, 2345)] == ["0 documents", "1 document", "2,345 documents"]


def test_sizes_below_a_megabyte_are_not_nothing():
    sizes = [0, 1, 999_000, 1_000_000, 1_234_500_000]
    assert [size_text(size) for size in sizes] == ["0 kB", "1 kB", "999 kB", "1.0 MB", "1,234.5 MB"]


def test_columns_have_titles_for_people(capsys):
    print_table([{"length": 5, "peak_rss_mb": 7}], ("length", "peak_rss_mb"))
    printed = capsys.readouterr().out
    assert "peak memory, MB" in printed
    assert "peak_rss_mb" not in printed


@pytest.fixture
def evil(tmp_path, model_folder, capsys):
    """A context of a document with an evil name and text, in a folder with an evil name."""
    from landmark import Context, from_pretrained

    path = tmp_path / "one\x1b[2J\r\ntwo"
    text = "it was a calm sea \x1b[31m and jim looked at the ships for a long while . " * 20
    with Context.create(path, from_pretrained(model_folder)) as context:
        context.append(text, EVIL.replace("\udcff", ""))
    capsys.readouterr()
    return path


def test_nothing_that_a_command_prints_of_a_context_reaches_a_terminal_raw(evil, model_folder, tmp_path, capsys):
    (tmp_path / "more.txt").write_text("more words of the sea", encoding="utf-8")
    commands = (
        ["contexts", "ls", str(tmp_path)],
        ["contexts", "info", str(evil)],
        ["contexts", "verify", str(evil)],
        ["ask", str(evil), "jim looked", "--max-new-tokens", "30"],
        ["append", str(evil), str(tmp_path / "more.txt")],
        ["contexts", "export", str(evil), "--out", str(tmp_path / "tar\x1b[2J")],
        ["contexts", "delete", str(evil)],
        ["contexts", "info", str(tmp_path / "gone\x1b[2J")],
    )
    for command in commands:
        cli.main(command)
        output = capsys.readouterr()
        shown = output.out + output.err
        assert r"\x1b[2J" in shown
        assert not {character for character in shown if character < " "} - {"\n", "\t"}
        assert "\u202e" not in shown


def test_json_has_every_character_as_it_is(evil, capsys):
    assert cli.main(["contexts", "info", str(evil), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(evil)
    assert found["documents"][0]["name"] == EVIL.replace("\udcff", "")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_hears_once_that_loops_are_compiled(is_terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    announce_compiling.cache_clear()
    announce_compiling()
    announce_compiling()
    loop = numba.njit(lambda x: x + 1)
    loop(1)
    loop(1.5)
    assert capsys.readouterr().err.count("compiling loops for this processor") == is_terminal
