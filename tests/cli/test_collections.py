"""`landmark read --apart`, `add` and `remove`, and collections where other commands take a context."""

import io
import json
from pathlib import Path

import pytest
from cli_texts import BOOK, NOTE

from landmark.cli import main as cli
from landmark.contexts import apart
from landmark.contexts.collection_manifest import DOCUMENTS, read_collection


@pytest.fixture
def collection(tmp_path, files, model_folder, capsys):
    path = tmp_path / "collection"
    assert cli.main(["read", "--apart", "--model", str(model_folder), "--out", str(path), files[0], "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["collection"] == str(path)
    assert (figures["documents"], figures["new_documents"]) == (1, 1)
    assert figures["tokens"] == figures["new_tokens"] > 0
    return path


def printed(capsys, *arguments: object):
    assert cli.main([str(argument) for argument in (*arguments, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


def test_documents_come_and_go(collection, files, model_folder, tmp_path, capsys, monkeypatch):
    assert printed(capsys, "add", collection, *files)["new_documents"] == 1
    again = printed(capsys, "read", "--apart", "--model", model_folder, "--out", collection, *files)
    assert (again["documents"], again["new_tokens"]) == (2, 0)
    copy = tmp_path / "copy.txt"
    copy.write_text(NOTE)
    again = printed(capsys, "add", collection, copy, files[0])
    assert again["new_documents"] == 0
    assert again["already_there"] == {str(copy): files[1], files[0]: files[0]}
    assert cli.main(["add", str(collection), str(copy), files[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{copy}: already there under the name {files[1]}", f"{files[0]}: already there"]
    assert lines[2].startswith(f"{collection}: nothing added; 2 documents, ")
    for text in (NOTE * 2, NOTE * 3, NOTE * 2):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        printed(capsys, "add", collection, "-")
    Path(files[1]).write_text(NOTE * 4)
    assert cli.main(["add", str(collection), files[1]]) == 2
    assert f"holds another text named {files[1]}: replace it (--replace)" in capsys.readouterr().err
    assert printed(capsys, "add", collection, files[1], "--replace")["new_documents"] == 1
    info = printed(capsys, "contexts", "info", collection)
    assert [(d["name"], d["characters"]) for d in info["documents"]] == [
        (files[0], len(BOOK)),
        (files[1], 4 * len(NOTE)),
        ("stdin", 2 * len(NOTE)),
        ("stdin 2", 3 * len(NOTE)),
    ]
    gone = printed(capsys, "remove", collection, "stdin 2", files[1])
    assert (gone["documents"], gone["removed"]) == (2, 2)
    assert len([*(collection / DOCUMENTS).iterdir()]) == 2
    assert printed(capsys, "contexts", "verify", collection)["damages"] == []
    assert cli.main(["contexts", "delete", str(collection), "--yes"]) == 0
    assert not collection.exists()


def test_every_text_is_tokenized_once(collection, files, tmp_path, capsys, monkeypatch):
    other, texts, usual = tmp_path / "other.txt", [], apart.tokenized
    other.write_text(NOTE * 2)
    monkeypatch.setattr(
        apart, "tokenized", lambda tokenizer, text, **how: texts.append(text) or usual(tokenizer, text, **how)
    )
    assert printed(capsys, "add", collection, *files, other)["new_documents"] == 2
    assert texts == [NOTE, NOTE * 2]


def test_commands_that_ask_take_a_collection(collection, files, tmp_path, capsys):
    assert cli.main(["add", str(collection), files[1]]) == 0
    assert "1 document of" in capsys.readouterr().out
    answer = printed(capsys, "ask", collection, "jim", "--max-new-tokens", "3", "--sources", "50")
    assert {source["document"] for source in answer["sources"]} <= {*files}
    assert answer["sources"]
    page = tmp_path / "page.html"
    assert cli.main(["view", "--context", str(collection), "--prompt", "jim", "--out", str(page)]) == 0
    assert page.exists()
    capsys.readouterr()
    heads = tmp_path / "heads.json"
    heads.write_text(json.dumps({"heads": [[1, 0]], "pooling": "mean"}))
    assert cli.main(["retrieve", str(collection), "jim looked", "--heads", str(heads), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {match["document"] for match in found} <= {*files}
    assert cli.main(["contexts", "ls", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2
    assert cli.main(["contexts", "info", str(collection)]) == 0
    assert files[1] in capsys.readouterr().out


def test_a_second_collection_shares(collection, files, model_folder, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr("landmark.contexts.apart.DocumentContext.reading", None)  # nothing is read
        arguments = ["read", "--apart", "--share", collection, "--model", model_folder, "--out", other, files[0]]
        assert printed(capsys, *arguments)["new_documents"] == 1
    assert printed(capsys, "contexts", "info", other)["shared_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "{collection}"], "nothing to add"),
        (["add", "{tmp}", "{book}"], "is not a collection: it has no collection.json; `landmark read --apart FILE ..."),
        (
            ["add", "{tmp}/none", "{book}"],
            "none does not exist: `landmark read --apart FILE ... --out {tmp}/none`",
        ),
        (["add", "{book}", "{book}"], "is not a collection: it is a file; `landmark read --apart"),
        (
            ["append", "{tmp}/none", "{book}"],
            "does not exist: `landmark read FILE ... --out {tmp}/none` makes",
        ),
        (["append", "{book}", "{book}"], "is a file, and a context is a folder: `landmark read {book} --out FOLDER`"),
        (["contexts", "info", "{tmp}"], "is not a context: it has no manifest.json; `landmark read FILE ... --out"),
        (["contexts", "verify", "{tmp}/none"], "none does not exist: `landmark read FILE"),
        (["add", "{collection}", "{tmp}/nothing.txt"], "does not exist"),
        (
            ["add", "{tmp}/context", "{book}"],
            "one after another; `landmark append {tmp}/context FILE ...` adds",
        ),
        (["remove", "{collection}"], "no document is named"),
        (["remove", "{collection}", "nothing"], "no document named 'nothing': there are"),
        (["remove", "{tmp}", "nothing"], "is not a collection"),
        (["append", "{collection}", "{book}"], "is a collection: add documents with `landmark add`"),
        (["read", "--out", "{collection}", "{book}"], "give --apart, or run landmark add"),
        (["read", "--apart", "--out", "{tmp}/context", "{book}"], "leave --apart out"),
        (["read", "--apart", "--out", "{tmp}", "{book}"], "holds other files"),
        (["read", "--share", "{collection}", "--out", "{tmp}/new", "{book}"], "give --apart too"),
        (["contexts", "ls", "{collection}"], "is a collection itself"),
        (["contexts", "export", "{collection}", "--out", "{tmp}/x.tar"], "is a collection"),
    ],
)
def test_mistakes_harm_nothing(collection, files, model_folder, tmp_path, arguments, said, capsys):
    assert cli.main(["read", "--model", str(model_folder), "--out", str(tmp_path / "context"), files[1]]) == 0
    capsys.readouterr()
    before = read_collection(collection)
    names = {"{collection}": str(collection), "{tmp}": str(tmp_path), "{book}": files[0]}
    for name, value in names.items():
        arguments, said = [argument.replace(name, value) for argument in arguments], said.replace(name, value)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert read_collection(collection) == before
    assert cli.main(["contexts", "verify", str(collection)]) == 0


def test_damage_is_one_line(collection, files, capsys):
    assert cli.main(["add", str(collection), files[1]]) == 0
    member = read_collection(collection).members[0]
    file = collection / DOCUMENTS / member.key / "segments" / "000001.landmarks"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    capsys.readouterr()
    assert cli.main(["ask", str(collection), "jim"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(file) in said
    assert cli.main(["contexts", "verify", str(collection)]) == 1
    assert cli.main(["remove", str(collection), member.name]) == 0
    assert cli.main(["ask", str(collection), "jim", "--max-new-tokens", "1"]) == 0
