"""The examples of each command's help, pasted into a shell in a folder with a text named book.txt."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import landmark
from landmark.cli import main as cli
from landmark.cli.examples import ALL, EXAMPLES
from landmark.cli.parsing import parse

# Stands in the place of `landmark` and `pip`, and notes what it was called with.
STUB = """\
import json, os, stat, sys
piped = stat.S_ISFIFO(os.fstat(0).st_mode)
with open(os.environ["CALLS"], "a") as calls:
    print(json.dumps([*sys.argv[1:], sys.stdin.read() if piped else ""]), file=calls)
"""
# What a small text and a few seconds suffice for.
RUN = ["read", "append", "add", "remove", "ask", "retrieve", "view", "contexts ls", "contexts info", "contexts verify"]
RUN += ["contexts delete", "contexts export", "tokenizer train"]


def calls_of(lines: str, folder: Path) -> list[tuple[list[str], str]]:
    """The arguments with which a shell calls `landmark`, and what it pipes into each call."""
    (folder / "stub.py").write_text(STUB)
    for name in ("landmark", "pip"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} "{folder}/stub.py" {name} "$@"\n')
        program.chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    environment["PYTHONPATH"] = str(Path(landmark.__file__).parents[1])
    subprocess.run(
        ["bash", "-ec", lines], cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=300
    )
    noted = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    return [(arguments, piped) for name, *arguments, piped in noted if name == "landmark"]


def options_of(arguments: list[str]):
    """The options that a call of `landmark` gives to its command."""
    (command,) = (one for one in cli.COMMANDS if arguments[: len(one.words)] == one.words)
    return parse(command.load()[1], command.name, arguments[len(command.words) :])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the beginning of the book in the package."""
    monkeypatch.chdir(tmp_path)
    text = landmark.book_path().read_text(encoding="utf-8")
    (tmp_path / "book.txt").write_text(text[:6000], encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_each_command_has_examples_that_work(command, folder, monkeypatch, capsys):
    calls = calls_of("\n".join(EXAMPLES[command.name]), folder)
    assert calls[-1][0][: len(command.words)] == command.words
    for arguments, _ in calls:
        options_of(arguments)
    if command.name not in RUN:
        return
    if command.name == "tokenizer train":  # a few pages have too few words
        (folder / "book.txt").write_text(landmark.book_path().read_text(encoding="utf-8"), encoding="utf-8")
    for arguments, piped in calls:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(piped.encode()), isatty=lambda: False))
        assert cli.main(arguments) == 0, capsys.readouterr().err


def test_help_ends_with_the_examples_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")  # a command that is wrapped cannot be pasted
    with pytest.raises(SystemExit):
        cli.main(["retrieve", "--help"])
    assert capsys.readouterr().out.splitlines()[-3:] == [f"  {line}" for line in EXAMPLES["retrieve"]]


def test_the_examples_of_all_commands_work(folder):
    (folder / "book.txt").unlink()
    calls = calls_of(ALL, folder)
    assert (folder / "book.txt").read_bytes() == landmark.book_path().read_bytes()
    for arguments, _ in calls:
        if arguments[-1] != "--help":
            options_of(arguments)
