"""`python -m reproduce` on the command line: what it refuses before it does anything."""

import pytest

from reproduce.__main__ import REPRODUCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the texts with --data DIR"),
        (("--quick", "--size", "medium"), "leave --size medium out"),
        (("--quick", "--tables", "controls,control"), "there is no table 'control'"),
        (("--tables-only", "--tables", "controls"), "--tables-only measures nothing"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(tmp_path, capsys, arguments, message):
    assert REPRODUCE.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", REPRODUCE.commands, ids=lambda command: command.name)
def test_every_command_has_options_and_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        REPRODUCE.main([*command.words, "--help"])
    assert not end.value.code
    assert command.name in capsys.readouterr().out


def test_a_conversion_needs_a_model_or_a_dry_run(tmp_path, capsys):
    assert REPRODUCE.main(["study", "convert-smollm2", "--out", str(tmp_path / "out")]) == 2
    assert "give --gguf, --tokens and --book, or --smoke" in capsys.readouterr().err
