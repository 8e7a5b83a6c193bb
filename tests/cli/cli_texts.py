"""Texts of the tests of commands, and a question about them."""

import json

from landmark.cli import main as cli

BOOK = "it was a calm sea and jim looked at the ships for a long while . " * 20
NOTE = "keys and ships 0123456789 . he spoke of it . " * 9


def ask(source, capsys, *options):
    """What `landmark ask` prints as JSON."""
    assert cli.main(["ask", str(source), "jim looked", "--max-new-tokens", "7", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)
