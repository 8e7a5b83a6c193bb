"""`landmark contexts`."""

import json
import shutil
import tarfile

import pytest
from cli_texts import NOTE, ask

import landmark
from landmark.cli import main as cli


def test_contexts_are_listed_checked_exported_and_deleted(context, tmp_path, capsys):
    assert cli.main(["contexts", "ls", str(tmp_path)]) == 0
    assert f"{context}: " in capsys.readouterr().out
    assert cli.main(["contexts", "info", str(context)]) == 0
    assert "block_size: 5" in capsys.readouterr().out
    assert cli.main(["contexts", "verify", str(context)]) == 0
    assert "every committed byte" in capsys.readouterr().out

    tar = tmp_path / "library.tar"
    assert cli.main(["contexts", "export", str(context), "--out", str(tar)]) == 0
    assert f"{tar}: " in capsys.readouterr().out
    before = ask(context, capsys)
    with tarfile.open(tar) as file:
        file.extractall(tmp_path / "elsewhere", filter="data")
    (unpacked,) = (tmp_path / "elsewhere").iterdir()
    assert ask(unpacked, capsys)["answer"] == before["answer"]

    blocks = next((context / "segments").glob("*.blocks"))
    data = bytearray(blocks.read_bytes())
    data[100] ^= 4
    blocks.write_bytes(data)
    assert cli.main(["contexts", "verify", str(context), "--json"]) == 1
    (damage,) = json.loads(capsys.readouterr().out)["damages"]
    assert "block 0" in damage

    assert cli.main(["contexts", "delete", str(context)]) == 2
    assert "--yes" in capsys.readouterr().err
    assert context.exists()
    assert cli.main(["contexts", "delete", str(context), "--yes"]) == 0
    assert not context.exists()


def test_a_file_url_is_a_folder_of_this_machine(context, tmp_path, capsys):
    for arguments in (["ls", f"file://{tmp_path}"], ["info", f"file://{context}"], ["verify", f"file://{context}"]):
        assert cli.main(["contexts", *arguments]) == 0
        assert "file:" not in capsys.readouterr().out


def test_a_folder_without_contexts_and_one_that_is_a_context(context, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["contexts", "ls", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr() == ("", f"no contexts in {tmp_path / 'empty'}\n")
    assert cli.main(["contexts", "ls", str(context)]) == 2
    assert f"run landmark contexts info {context}" in capsys.readouterr().err


def test_a_damaged_context_is_marked_and_the_rest_listed(context, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(context, damaged)
    next((damaged / "segments").glob("*.text")).unlink()
    assert cli.main(["contexts", "ls", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{damaged}: DAMAGED: ")
    assert lines[1].startswith(f"{context}: ")
    assert cli.main(["contexts", "ls", str(tmp_path), "--json"]) == 0
    marked, sound = map(json.loads, capsys.readouterr().out.splitlines())
    assert "is missing" in marked["damage"]
    assert "damage" not in sound
    assert cli.main(["contexts", "delete", str(damaged), "--yes"]) == 0
    assert not damaged.exists()


def test_what_was_added_and_not_read_is_told_apart(context, model_folder, capsys):
    with landmark.Context.open(context, landmark.from_pretrained(model_folder), write=True) as opened:
        read = opened.tokens_read
        opened.add([("note", NOTE)])
        added = opened.tokens - read
    assert cli.main(["contexts", "info", str(context), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["tokens_read"], found["tokens_not_read"]) == (read + added, read, added)
    assert cli.main(["contexts", "info", str(context)]) == 0
    assert f"tokens_not_read: {added}\n" in capsys.readouterr().out


@pytest.mark.parametrize("left", [[], ["lock"], ["segments/"], ["lock", "state-1.safetensors", "segments/000001.text"]])
def test_what_is_left_of_a_deletion_is_deleted(tmp_path, left, capsys):
    path = tmp_path / "library"
    make(path, left)
    assert cli.main(["contexts", "delete", str(path)]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert cli.main(["contexts", "delete", str(path), "--yes"]) == 0
    assert not path.exists()


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", "segments/"], ["lock", "segments/", "manifest.json.tmp"]])
def test_a_killed_creation_is_read_into(tmp_path, files, model_folder, left):
    path = tmp_path / "library"
    make(path, left)
    assert cli.main(["read", "--model", str(model_folder), "--out", str(path), files[1]]) == 0
    assert cli.main(["contexts", "verify", str(path)]) == 0


def make(folder, names):
    folder.mkdir()
    for name in names:
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        if name.endswith("/"):
            place.mkdir()
        else:
            place.write_bytes(b"" if name == "manifest.json.tmp" else b"1")
