"""`landmark view`, of a text and of a context."""

import json

import pytest
from cli_texts import BOOK

from landmark.cli import main as cli


def test_a_text_as_page_list_figure_and_lines(model_folder, book, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("page.html", "map.svg", "reads.jsonl")]
    arguments = ["view", "--file", str(book), "--prompt", "jim looked", "--model", str(model_folder)]
    outputs = [x for pair in zip(("--out", "--figure", "--jsonl"), map(str, files), strict=True) for x in pair]
    assert cli.main([*arguments, "--max-new-tokens", "4", "--text", "--passages", "3", *outputs]) == 0
    output = capsys.readouterr()
    assert all(path.stat().st_size > 1000 for path in files)
    assert output.err.count("wrote ") == 3
    assert output.out.count(", weight 0.") == 3
    first = next(line for line in output.out.splitlines() if ", weight " in line)
    assert first.startswith("long_book.txt, characters ")
    begin, end = first.split("characters ")[1].split(",")[0].split(":")
    assert " ".join((BOOK * 3)[int(begin) : int(end)].split()) in output.out
    lines = [json.loads(line) for line in files[2].read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4 * 2 * 4
    assert all(sum(line["weights"]) + line["local"] == pytest.approx(1, abs=1e-5) for line in lines)
    assert "long_book.txt" in files[0].read_text(encoding="utf-8")


def test_a_context(context, model_folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments = ["view", "--context", str(context), "--prompt", "jim looked", "--model", str(model_folder)]
    assert cli.main([*arguments, "--max-new-tokens", "3", "--out", str(page), "--text"]) == 0
    assert 'book.txt","kind":"document"' in page.read_text(encoding="utf-8")
    assert "book.txt, characters " in capsys.readouterr().out


def test_a_context_without_text(model_folder, tmp_path, capsys):
    import landmark

    landmark.Context.create(tmp_path / "empty", landmark.from_pretrained(model_folder)).close()
    arguments = ["--prompt", "jim", "--model", str(model_folder), "--max-new-tokens", "2", "--text"]
    refused(["view", "--context", str(tmp_path / "empty"), *arguments], "empty has no text that was read", capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing is to be made: give --out PAGE.html"),
        (["--text", "--context", "library"], "give --context CONTEXT or --file BOOK, one of them"),
        (["--out", "page.txt"], "out is page.txt: end its name in .html"),
        (["--figure", "page.html"], "figure is page.html: end its name in .png or .svg or .pdf"),
        (["--jsonl", "reads.json"], "jsonl is reads.json: end its name in .jsonl"),
        (["--out", "/nonexistent/page.html"], "in a folder that does not exist"),
        (["--text", "--prompt", ""], "prompt is empty"),
        (["--text", "--passages", "0"], "passages is 0: give 1 or more"),
        (["--out", "page.html", "--passages", "3"], "passages is 3, and none are printed: give --text"),
        (["--text", "--retrieve", "0"], "no block was opened"),
    ],
)
def test_mistakes(model_folder, book, arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["view", "--file", str(book), "--model", str(model_folder), "--max-new-tokens", "2"]
    prompt = [] if "--prompt" in arguments else ["--prompt", "jim looked"]
    refused([*given, *prompt, *arguments], said, capsys)


def test_sources_that_are_none(model_folder, files, tmp_path, capsys):
    asked = ["--prompt", "jim", "--model", str(model_folder), "--text"]
    refused(["view", *asked], "give --context CONTEXT or --file BOOK", capsys)
    refused(["view", "--file", str(tmp_path / "none.txt"), *asked], "does not exist", capsys)
    refused(
        ["view", "--context", files[0], *asked], "is no context, which is a folder: give a text with --file", capsys
    )
    refused(["view", "--file", str(tmp_path), *asked], "is a directory", capsys)
    (tmp_path / "short.txt").write_text("jim", encoding="utf-8")
    refused(
        ["view", "--file", str(tmp_path / "short.txt"), *asked, "--max-new-tokens", "2"], "no block was opened", capsys
    )


def refused(arguments, said, capsys):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
