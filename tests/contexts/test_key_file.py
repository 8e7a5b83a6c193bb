"""The key file: processes share its pages, no byte of it is believed, and nothing that a reader writes reaches it."""

import errno
import os
import tarfile

import numpy as np
import pytest
import torch
from forking import logits
from made import HEADER, LAYOUT, Content, add, check, commit, landmarks_of, names

from landmark import Context
from landmark.contexts import disk, key_file
from landmark.contexts.export import export
from landmark.contexts.folder import delete, fork
from landmark.contexts.key_file import mapped_keys
from landmark.contexts.manifest import KEYS, NEW_KEYS
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer

BLOCKS = tuple(range(1, 41))
BOOK = "it was a calm sea and jim looked at the ships for a long while . " * 30


@pytest.fixture(autouse=True)
def _small_files_too(monkeypatch):
    monkeypatch.setattr(key_file, "LEAST_BYTES", 1)


@pytest.fixture
def held():
    return Content((1,), BLOCKS, 1)


@pytest.fixture
def path(tmp_path):
    with create(tmp_path / "one", HEADER, LAYOUT) as writer:
        commit(writer, add(writer, Content(), (1,), BLOCKS))
    return tmp_path / "one"


def mapped(path):
    snapshot = open_reader(path)
    return mapped_keys(snapshot.folder, snapshot.layout, snapshot.blocks)


def test_the_file_has_the_keys_by_layer_and_head(path):
    keys = mapped(path)
    assert [layer.shape for layer in keys] == [(1, 64, 4), (2, 64, 2)]
    for layer, wanted in zip(keys, landmarks_of(open_reader(path)), strict=True):
        np.testing.assert_array_equal(layer[:, : len(BLOCKS)], wanted)


def damaged(name, file):
    """The key file, changed in one way."""
    data = bytearray(file.read_bytes())
    if name == "flipped":
        data[5] ^= 16
    if name == "NaN":
        data[:400] = b"\xff" * 400
    if name == "cut short":
        data = data[:-4]
    if name == "of fewer blocks":
        data = data[: len(data) // 4]
    if name == "of many more":
        data = data * 100
    if name == "zeros":
        data = bytes(len(data))
    if name == "empty":
        data = b""
    file.unlink()
    if name == "a link":
        file.symlink_to(file.parent / "manifest.json")
    elif name == "a folder":
        file.mkdir()
    elif name == "a pipe":
        os.mkfifo(file)
    elif name != "missing":
        file.write_bytes(data)


CHANGES = ["flipped", "NaN", "cut short", "of fewer blocks", "of many more", "zeros", "empty", "missing"]


@pytest.mark.parametrize("change", [*CHANGES, "a link", "a folder", "a pipe"])
def test_what_is_read_are_the_keys_of_the_records(path, held, change):
    damaged(change, path / KEYS)
    check(open_reader(path), held)
    assert verify(path) == []


def test_a_file_that_others_may_change_is_not_mapped(path, held, monkeypatch):
    assert mapped(path) is not None
    (path / KEYS).chmod(0o664)
    assert mapped(path) is None
    check(open_reader(path), held)
    (path / KEYS).chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(disk, "ROOT", 54321)
    assert mapped(path) is None
    check(open_reader(path), held)


def test_what_a_reader_writes_stays_in_its_process(path, held):
    before = {name: (path / name).read_bytes() for name in names(path)}
    snapshot = open_reader(path)
    for keys in snapshot.landmark_buffers():
        keys.fill_(7)
    snapshot.state()[0]["window"].fill_(7)
    assert {name: (path / name).read_bytes() for name in names(path)} == before
    check(snapshot, held)


def test_a_context_that_grows_gets_a_new_file_where_the_old_has_no_room(path, held):
    keys, number = open_reader(path).landmark_buffers(), (path / KEYS).stat().st_ino
    before = [layer.clone() for layer in keys]
    with open_writer(path) as writer:
        held = commit(writer, add(writer, held, (2,), tuple(range(41, 61))))
        assert (path / KEYS).stat().st_ino == number
        check(open_reader(path), held)
        held = commit(writer, add(writer, held, (), tuple(range(61, 71))))
        assert (path / KEYS).stat().st_ino != number
    check(open_reader(path), held)
    assert all(map(torch.equal, keys, before))
    assert names(path) == {name for name in names(path) if not name.endswith(".tmp")}


def test_forks_share_the_file_and_grow_alone(path, held, tmp_path):
    fork(path, tmp_path / "other")
    assert (path / KEYS).samefile(tmp_path / "other" / KEYS)
    before = (path / KEYS).read_bytes()
    with open_writer(tmp_path / "other") as writer:
        grown = commit(writer, add(writer, held, (), tuple(range(50, 90))))
    check(open_reader(tmp_path / "other"), grown)
    check(open_reader(path), held)
    assert (path / KEYS).read_bytes() == before
    delete(tmp_path / "other")
    delete(path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_has_the_file(path, held, tmp_path):
    export(path, tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        tar.extractall(tmp_path / "there", filter="data")
    assert mapped(tmp_path / "there" / "one") is not None
    check(open_reader(tmp_path / "there" / "one"), held)


def test_a_commit_does_not_need_the_file(path, held, monkeypatch):
    def full(file, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_writer(path) as writer:
        monkeypatch.setattr(disk, "truncate", full)
        held = commit(writer, add(writer, held, (), tuple(range(50, 90))))
    assert (path / NEW_KEYS).exists()
    check(open_reader(path), held)
    monkeypatch.undo()
    with open_writer(path):
        assert not (path / NEW_KEYS).exists()


def test_the_same_logits_from_mapped_keys(tmp_path, model):
    path = tmp_path / "book"
    with Context.create(path, model) as context:
        context.append(BOOK, "book")
    wanted = logits(Context.open(path, model))
    assert mapped(path) is not None
    (path / KEYS).rename(tmp_path / KEYS)
    assert torch.equal(logits(Context.open(path, model)), wanted)
    (tmp_path / KEYS).rename(path / KEYS)
    reader = Context.open(path, model)
    branch = reader.fork()
    branch.append(BOOK[:200], "note")
    with Context.open(path, model, write=True) as context:
        context.append(BOOK[:200], "note")
        assert torch.equal(logits(context), logits(branch))
    assert torch.equal(logits(reader), wanted)
