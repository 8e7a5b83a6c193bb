"""`landmark demo`."""

import pytest

from landmark.cli import main as cli
from landmark.evaluation import passkey


@pytest.mark.parametrize(("right", "code"), [(True, 0), (False, 1)])
def test_demo_says_whether_the_answer_is_right(model_folder, book, monkeypatch, capsys, right, code):
    # A random model cannot answer, so the key is put into its mouth; everything else is real.
    keys: list[str] = []
    hide, ask = passkey.PasskeyPrompts.hide, passkey.ask

    def noting(self, key, filler, depth):
        keys.append(key)
        return hide(self, key, filler, depth)

    def answering(*arguments, **options):
        ask(*arguments, **options)
        return keys[0] if right else "00000"

    monkeypatch.setattr(passkey.PasskeyPrompts, "hide", noting)
    monkeypatch.setattr(passkey, "ask", answering)
    arguments = ["demo", "--model", str(model_folder), "--text", str(book), "--seed", "3", "--depth", "0.25"]
    assert cli.main(arguments) == code
    printed = capsys.readouterr().out
    assert f"The pass key is {keys[0]}." in printed
    assert "25.0%" in printed
    assert ("\nright\n" in printed) == right
    assert (f"wrong, it is {keys[0]}" in printed) != right
    assert printed.count("  block ") == 5
    assert "full attention" in printed
    assert "tokens/s" in printed


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--depth", "1.5"], "depth is 1.5"), (["--seed", "-1"], "seed is -1")]
)
def test_mistakes_with_demo(arguments, said, capsys):
    assert cli.main(["demo", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_package_has_a_book_of_more_than_100_000_tokens():
    from landmark.assets import book_path
    from landmark.data.text import read_text

    # A token of a byte-pair tokenizer takes 3 to 5 bytes of English, seldom more than 6.
    assert 600_000 < len(read_text(book_path()).encode()) < 1_000_000
