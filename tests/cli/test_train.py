"""`landmark train` on the command line: what it refuses before it writes anything."""

import pytest

from landmark.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "RECIPE", "--texts", "a.txt", "--steps", "5"], "r.toml decides about --steps"),
        ([], "name some with --texts"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(tmp_path, capsys, arguments, message):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[[stage]]\nsteps = 4\nwindow_positions = 48\nbatch_size = 3\n")
    arguments = [argument.replace("RECIPE", str(recipe)) for argument in arguments]
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
