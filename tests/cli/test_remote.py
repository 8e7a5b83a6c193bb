"""Commands with a collection on another file system, here one in memory; and stores that do not answer."""

import json
import os

import pytest
from cli_texts import NOTE

from landmark.cli import main as cli
from landmark.contexts import remote_cache

fsspec = pytest.importorskip("fsspec", reason="the extra remote")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402


class Kept(MemoryFileSystem):
    """A file system that commands take for one that outlives them."""

    protocol = "kept"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("kept://", "memory://"))


fsspec.register_implementation("kept", Kept, clobber=True)


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
    yield tmp_path / "cache"
    while remote_cache._held:
        os.close(remote_cache._held.popitem()[1])


@pytest.fixture
def url(cache, tmp_path, files, model_folder, capsys):
    url = f"kept://bucket/{tmp_path.name}"
    assert run("read", "--apart", "--model", model_folder, "--out", url, files[0]) == 0
    assert capsys.readouterr().out.startswith(f"{url}: 1 document of")
    return url


def test_a_library_elsewhere(url, files, model_folder, tmp_path, capsys, monkeypatch):
    def printed(*arguments: object):
        assert run(*arguments, "--json") == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (added,) = printed("add", url, *files)
    assert (added["collection"], added["documents"], added["new_documents"]) == (url, 2, 1)
    (again,) = printed("read", "--apart", "--model", model_folder, "--out", url, *files)
    assert (again["documents"], again["new_documents"]) == (2, 0)
    local = tmp_path / "local"
    printed("read", "--apart", "--model", model_folder, "--out", local, *files)

    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "another machine"))
    heads = tmp_path / "heads.json"
    heads.write_text(json.dumps({"heads": [[1, 0]], "pooling": "mean"}))
    for command, *asked in (
        ("ask", "jim", "--max-new-tokens", "5", "--sources", "50"),
        ("retrieve", "jim looked", "--heads", heads),
    ):
        (at_url, here) = (printed(command, place, *asked) for place in (url, local))
        for found in (*at_url, *here):
            found.pop("seconds", None)
        assert at_url == here
    page = tmp_path / "page.html"
    assert run("view", "--context", url, "--prompt", "jim", "--out", page) == 0
    assert page.exists()
    (info,) = printed("contexts", "info", url)
    assert (info["path"], [document["name"] for document in info["documents"]]) == (url, files)

    (gone,) = printed("remove", url, files[0])
    assert (gone["collection"], gone["documents"], gone["removed"]) == (url, 1, 1)
    (answer,) = printed("ask", url, "jim", "--max-new-tokens", "1", "--sources", "50")
    assert {source["document"] for source in answer["sources"]} == {files[1]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["read", "--out", "{url}", "{book}"], "for documents that are read apart: give --apart too"),
        (["append", "{url}", "{book}"], "give a folder of this machine"),
        (["contexts", "verify", "{url}"], "give a folder of this machine"),
        (["contexts", "delete", "{url}", "--yes"], "give a folder of this machine"),
        (["contexts", "export", "{url}", "--out", "{tmp}/x.tar"], "give a folder of this machine"),
        (["contexts", "ls", "{url}"], "give a folder of this machine"),
        (["read", "--apart", "--share", "{url}", "--out", "{tmp}/new", "{book}"], "give a folder of this machine"),
        (["train", "--out", "{url}", "--texts", "{book}"], "give a folder of this machine"),
        (["add", "{url}", "{tmp}/changed/book.txt", "--model", "{tmp}"], "no model can be loaded"),
        (["ask", "{url}x", "jim"], "there is no collection at kept://"),
        (["ask", "{url}", ""], "the prompt is empty"),
        (["remove", "{url}", "nothing"], "{url} has no document named 'nothing'"),
        (
            ["read", "--apart", "--out", "memory://b", "{book}"],
            "memory://b ends with the command: give a folder, or",
        ),
        (["read", "--apart", "--ray", "local", "--out", "memory://b", "{book}"], "memory://b ends with the command"),
        (["add", "memory://b", "{book}"], "memory://b ends with the command"),
        (["serve", "memory://b"], "memory://b ends with the command"),
        (["read", "--apart", "--out", "file://", "{book}"], "file: is a URL without a path: name a folder, as in"),
        (["read", "--out", "s3://", "{book}"], "s3: is a URL without a path"),
        (["ask", "s3://", "jim"], "s3: is a URL without a path"),
        (["read", "--apart", "--out", "http://127.0.0.1:9/x", "{book}"], "http://127.0.0.1:9/x is read-only"),
        (["add", "http://127.0.0.1:9/x", "{book}"], "http://127.0.0.1:9/x is read-only"),
        (["remove", "http://127.0.0.1:9/x", "book"], "http://127.0.0.1:9/x is read-only"),
    ],
)
def test_mistakes_harm_nothing(url, files, tmp_path, arguments, said, capsys):
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "book.txt").write_text(NOTE)
    store = fsspec.filesystem("kept")
    before = {path: store.cat_file(path) for path in store.find(url)}
    for name, value in {"{url}": url, "{book}": files[0], "{tmp}": str(tmp_path)}.items():
        arguments, said = [argument.replace(name, value) for argument in arguments], said.replace(name, value)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {path: store.cat_file(path) for path in store.find(url)} == before


def test_damage_in_the_copy_ends_one_answer(url, capsys, monkeypatch, tmp_path):
    """Blocks are compared with their checksums when an answer reads them; what opening checks is fetched at once."""
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "another machine"))
    asking = ["ask", url, "jim looked", "--max-new-tokens", "2"]
    assert run(*asking) == 0
    answer = capsys.readouterr().out
    for kind, code in (("blocks", 2), ("landmarks", 0)):
        (file,) = (tmp_path / "another machine").rglob(f"*.{kind}")
        file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
        assert run(*asking) == code
        printed = capsys.readouterr()
        if code:
            assert f"was part of a copy of {url}, and is deleted: open that again" in printed.err
            assert printed.err.count("\n") == 1
            assert run(*asking) == 0
            printed = capsys.readouterr()
        assert printed.out == answer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}, "Could not connect to the endpoint"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"}, "Unable to locate"),
    ],
)
def test_a_store_that_does_not_answer_is_one_line(cache, monkeypatch, capsys, settings, said):
    pytest.importorskip("s3fs", reason="the extra remote")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**settings, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    fsspec.filesystem("s3").clear_instance_cache()
    assert run("ask", "s3://bucket/library", "jim") == 2
    error = capsys.readouterr().err
    assert "s3://bucket/library cannot be reached" in error
    assert said in error
    assert error.count("\n") == 1
    fsspec.filesystem("s3").clear_instance_cache()
