"""`python -m reproduce` on the command line: what it refuses before it does anything."""

import pytest

from reproduce.__main__ import REPRODUCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the texts with --data DIR"),
        (("--quick", "--size", "medium"), "leave --size medium out"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(tmp_path, capsys, arguments, message):
    assert REPRODUCE.main(["--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
