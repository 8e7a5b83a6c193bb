"""`landmark read` and `landmark append`, and mistakes with contexts."""

import io
import json
from typing import get_args, get_type_hints

import pytest
from cli_texts import BOOK, NOTE

from landmark.cli import main as cli


def test_append_and_read_again_leave_out_what_is_there(context, files, model_folder, capsys, monkeypatch):
    assert cli.main(["append", str(context), *files]) == 0
    assert "2 documents" in capsys.readouterr().out
    assert cli.main(["read", "--model", str(model_folder), "--out", str(context), *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((NOTE * 2).encode())))
    assert cli.main(["append", str(context), "-", "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert (given["documents"], given["new_documents"]) == (3, 1)
    assert cli.main(["contexts", "info", str(context), "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)["documents"]
    assert [(d["name"], d["characters"]) for d in documents] == [
        (files[0], len(BOOK)),
        (files[1], len(NOTE)),
        ("stdin", 2 * len(NOTE)),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "{context}", ""], "prompt is empty"),
        (["ask", "{context}", "x", "--sources", "-1"], "sources is -1"),
        (["ask", "{context}", "x", "--host-budget", "much"], "host_budget is 'much'"),
        (["ask", "{context}", "x", "--host-budget", "1KB"], "too small for a single query"),
        (
            ["ask", "{context}", "x", "--kv-dtype", "int8"],
            "kv_dtype is 'int8', and the context keeps its blocks in float",
        ),
        (["append", "{context}", "{book}", "--kv-dtype", "int8"], "leave kv_dtype out, or read the text again"),
        (["ask", "{tmp}/nothing", "x"], "not a context"),
        (["append", "{context}", "{tmp}/nothing.txt"], "does not exist"),
        (["append", "{tmp}", "{book}"], "not a context"),
        (["read", "--out", "{tmp}", "{book}"], "holds other files"),
        (["contexts", "verify", "{tmp}"], "not a context"),
        (["contexts", "ls", "{tmp}/nothing"], "not a folder"),
        (["contexts", "export", "{context}", "--out", "{book}"], "exists"),
        (["contexts", "delete", "{tmp}", "--yes"], "not a context"),
        (["contexts", "rm"], "known are: contexts ls"),
        (["read", "--out", "{tmp}/new"], "nothing to read"),
        (["read", "--out", "{tmp}/new", "{book}", "--ray-workers", "3"], "ray_workers is 3, of a Ray cluster"),
    ],
)
def test_mistakes_harm_nothing(context, files, tmp_path, arguments, said, capsys):
    names = {"{context}": str(context), "{tmp}": str(tmp_path), "{book}": files[0]}
    given = []
    for argument in arguments:
        for name, value in names.items():
            argument = argument.replace(name, value)
        given.append(argument)
    assert cli.main(given) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert cli.main(["contexts", "verify", str(context)]) == 0


def test_what_an_interruption_left_unread_is_told_and_read(tmp_path, files, model_folder, capsys, monkeypatch):
    path = tmp_path / "library"
    with monkeypatch.context() as patch:
        patch.setattr("landmark.contexts.context.Context.read", lambda self, progress: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(["read", "--model", str(model_folder), "--out", str(path), *files])
    assert cli.main(["ask", str(path), "jim", "--max-new-tokens", "1"]) == 0
    assert f"not read yet: run landmark append {path}" in capsys.readouterr().err
    assert cli.main(["append", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] > 100
    assert cli.main(["ask", str(path), "jim", "--max-new-tokens", "1"]) == 0
    assert "not read yet" not in capsys.readouterr().err


def test_the_commands_know_every_index():
    from landmark.cli.options import MemoryOptions
    from landmark.index.options import IndexKind

    assert get_args(get_type_hints(MemoryOptions)["index"]) == get_args(IndexKind)


def test_another_text_under_a_known_name_is_refused(context, files, tmp_path, capsys):
    (tmp_path / "book.txt").write_text(NOTE, encoding="utf-8")
    assert cli.main(["append", str(context), files[0]]) == 2
    assert "holds another text named" in capsys.readouterr().err


def test_standard_input_is_another_document_every_time(context, capsys, monkeypatch):
    def append(text):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert cli.main(["append", str(context), "-", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["new_documents"]

    # The last is what an interrupted command gives when it is repeated.
    assert [append(text) for text in (NOTE, NOTE * 2, NOTE * 2)] == [1, 1, 0]
    assert cli.main(["contexts", "info", str(context), "--json"]) == 0
    names = [document["name"] for document in json.loads(capsys.readouterr().out)["documents"]]
    assert names[1:] == ["stdin", "stdin 2"]


def test_documents_of_one_command_are_compared_before_the_model_is_loaded(tmp_path, files, model_folder, capsys):
    out = ["--model", str(model_folder), "--out", str(tmp_path / "new"), "--json"]
    assert cli.main(["read", *out, files[0], files[1], files[0]]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2
    texts = iter((BOOK, NOTE))  # as a named pipe gives
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("landmark.data.text.read_text", lambda path: next(texts))
        patch.setattr("landmark.cli.read.load", None)
        assert cli.main(["append", str(tmp_path / "new"), files[0], files[0]]) == 2
    assert f"two different texts are named {files[0]}" in capsys.readouterr().err


def test_a_context_in_int8_opens_without_the_option(files, model_folder, tmp_path, capsys):
    out = str(tmp_path / "int8")
    model = ["--model", str(model_folder)]
    assert cli.main(["read", *model, "--out", out, "--kv-dtype", "int8", files[0]]) == 0
    assert cli.main(["append", *model, out, files[1]]) == 0
    assert cli.main(["ask", *model, out, "jim looked", "--max-new-tokens", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])["answer"]
    assert cli.main(["ask", *model, out, "jim looked", "--max-new-tokens", "3", "--json", "--kv-dtype", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == answer
    assert cli.main(["ask", *model, files[0], "jim looked", "--kv-dtype", "int8"]) == 2
    assert "without a budget all stay on it: give host_budget" in capsys.readouterr().err
