"""`landmark generate` and `landmark demo`."""

import json

import pytest

from landmark.cli import main as cli
from landmark.evaluation import passkey


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("it was a calm sea and jim looked at the ships for a long while . " * 60, encoding="utf-8")
    return path


def test_generate_streams_the_answer_and_names_what_it_read(model_folder, book, capsys):
    arguments = ["generate", "--model", str(model_folder), "--file", str(book), "--prompt", "jim looked"]
    arguments += ["--max-new-tokens", "7", "--spans", "3"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new_tokens"] == 7
    assert len(found["spans"]) == 3
    text = book.read_text(encoding="utf-8") + "jim looked"
    for span in found["spans"]:
        assert text[span["first"] : span["last"]] == span["text"] != ""
        assert (span["start"], span["stop"]) == (span["block"] * 5, span["block"] * 5 + 5)
    weights = [span["weight"] for span in found["spans"]]
    assert weights == sorted(weights, reverse=True)

    assert cli.main(arguments) == 0
    output = capsys.readouterr()
    assert output.out.startswith(found["answer"])
    first = found["spans"][0]
    assert f"block {first['block']}, weight {first['weight']:.3f}" in output.out
    assert f"{found['tokens_read']:,} tokens read" in output.err


def test_sampling_follows_the_seed(model_folder, book, capsys):
    arguments = ["generate", "--model", str(model_folder), "--file", str(book), "--prompt", "jim", "--json"]
    answers = []
    for seed in ("1", "1", "2"):
        assert cli.main([*arguments, "--temperature", "1.5", "--max-new-tokens", "9", "--seed", seed]) == 0
        answers.append(json.loads(capsys.readouterr().out)["answer"])
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--spans", "-1"], "spans is -1"),
        (["--prompt", ""], "prompt is empty"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0: give 1 or more"),
        (["--temperature", "-1"], "temperature is -1.0: give 0 for the most likely"),
        (["--chunk-size", "5000"], "does not fit the trained range"),
        (["--retrieve", "-2"], "retrieve is -2"),
        (["--file", "/nonexistent.txt"], "does not exist"),
    ],
)
def test_mistakes_with_generate(model_folder, book, arguments, said, capsys):
    given = ["generate", "--model", str(model_folder), "--file", str(book), "--prompt", "jim"]
    assert cli.main([*given, *arguments]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1


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
    arguments = ["demo", "--model", str(model_folder), "--book", str(book), "--seed", "3", "--depth", "0.25"]
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
