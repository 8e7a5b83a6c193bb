"""What a writer refuses, and that a refusal changes nothing."""

import errno
import hashlib
import json
import os

import pytest
import torch
from made import HEADER, HELD, LAYOUT, Content, add, as_version_1, check, commit, short_segments

from landmark.contexts import disk, folder
from landmark.contexts.manifest import Layout, publish, read_manifest
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer


def test_a_second_writer_is_refused(path):
    with open_writer(path), pytest.raises(ValueError, match=rf"written by another writer \(process {os.getpid()}\)"):
        open_writer(path)
    open_writer(path).close()


def test_create_refuses_what_is_there(path, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("x")
    for taken in (path, tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(ValueError, match="exists: give a new folder"):
            create(taken, HEADER, LAYOUT)
    check(open_reader(path), HELD)


@pytest.mark.parametrize("header", [{"a": float("nan")}, {"a": object()}])
def test_header_must_be_json(tmp_path, header):
    with pytest.raises(ValueError, match="the header cannot be written as JSON"):
        create(tmp_path / "new", header, LAYOUT)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layout", [Layout((), ()), Layout(LAYOUT.blocks, LAYOUT.landmarks[:1])])
def test_layout_must_have_layers(tmp_path, layout):
    with pytest.raises(ValueError, match="of each layer"):
        create(tmp_path / "new", HEADER, layout)


def test_what_is_not_committed_is_gone_after_reopening(path):
    writer = open_writer(path)
    add(writer, HELD, (5,), (6, 7))
    writer.close()
    check(open_reader(path), HELD)
    with open_writer(path) as writer:
        for kind, size in writer.segments[0].entry.sizes(LAYOUT).items():
            assert writer.segments[0].path(kind).stat().st_size == size
        after = commit(writer, add(writer, HELD, (8,), (9,)))
    check(open_reader(path), after)


def test_a_snapshot_stays_as_it_was(path):
    snapshot = open_reader(path)
    with open_writer(path) as writer:
        commit(writer, add(writer, HELD, (5,), (6, 7)))
    check(snapshot, HELD)


def test_segments_end_at_a_commit(tmp_path):
    with short_segments(2), create(tmp_path / "one", HEADER, LAYOUT) as writer:
        held = commit(writer, add(writer, Content(), (1,), (1, 2, 3)))
        held = commit(writer, add(writer, held, (2,), (4,)))
        held = commit(writer, add(writer, held, (), (5,)))
        assert [(s.first, s.count) for s in writer.segments] == [(0, 3), (3, 2)]
        check(writer, held)


def test_layers_must_agree_at_a_commit(path):
    with open_writer(path) as writer:
        target, shape = writer.target(1), LAYOUT.blocks[1]
        keys = torch.zeros(shape.heads, 1, shape.stride, shape.key_dim, dtype=shape.dtype)
        values = torch.zeros(shape.heads, 1, shape.stride, shape.value_dim, dtype=shape.dtype)
        target.file.write(1, target.allocate(2, 1), keys, values)
        with pytest.raises(
            ValueError, match=r"layers differ in their new blocks: 0 .* in layer 0, and 1 .* in layer 1"
        ):
            writer.commit({}, {})
    check(open_reader(path), HELD)


def test_blocks_come_in_order(path):
    with open_writer(path) as writer, pytest.raises(ValueError, match="layer 0 goes on with block 2, not 3"):
        writer.target(0).allocate(3, 1)


@pytest.mark.parametrize("keys", [torch.zeros(2, 1, 4), torch.zeros(1, 1, 4, dtype=torch.float64), torch.zeros(1, 4)])
def test_landmark_keys_must_fit(path, keys):
    with (
        open_writer(path) as writer,
        pytest.raises(ValueError, match=r"landmark keys of layer 0 are float32 \[1,m,4\]"),
    ):
        writer.append_landmarks(0, keys)


@pytest.mark.parametrize(
    ("text", "ids", "offsets", "message"),
    [
        ("ab", [1, 2], [(0, 1)], r"ids \[2\] and offsets \[1, 2\]"),
        ("ab", [-1], [(0, 1)], "out of range"),
        ("ab", [2**32], [(0, 1)], "out of range"),
        ("ab", [1], [(0, 3)], "out of range"),
        ("\ud800", [1], [(0, 1)], "UTF-8"),
    ],
)
def test_documents_must_fit_their_tokens(path, text, ids, offsets, message):
    with open_writer(path) as writer:
        with pytest.raises(ValueError, match=message):
            writer.add_document("name", text, ids, offsets)
        after = commit(writer, HELD)  # the refusal broke nothing
    check(open_reader(path), after)


def test_state_must_be_json(path):
    with open_writer(path) as writer:
        with pytest.raises(ValueError, match="the state's metadata cannot be written as JSON"):
            writer.commit({}, object())
        after = commit(writer, HELD)
    check(open_reader(path), after)


@pytest.mark.parametrize("call", ["write", "sync", "replace"])
def test_after_a_refused_call_nothing_goes_on(path, monkeypatch, call):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = open_writer(path)
    new = add(writer, HELD, (5,), (6,))
    with monkeypatch.context() as patched:
        patched.setattr(disk, call, refuse)
        with pytest.raises(OSError, match="No space left"):
            commit(writer, new)
    for change in (lambda: commit(writer, new), lambda: add(writer, new, (7,), ()), lambda: add(writer, new, (), (7,))):
        with pytest.raises(
            ValueError, match=r"an earlier change failed \(No space left on device\); open the context again"
        ):
            change()
    check(writer, HELD)
    writer.close()
    with open_writer(path) as writer:
        after = commit(writer, add(writer, HELD, (5,), (6,)))
    check(open_reader(path), after)


def test_errors_of_calls_on_open_files_name_the_file(path):
    file = disk.open_file(disk.open_folder(path) / "manifest.json")
    with pytest.raises(OSError, match=r"manifest\.json"):
        disk.write(file, b"x", 0)
    with pytest.raises(OSError, match=r"too early.*manifest\.json"):
        file.read(1 << 20)


def test_a_closed_writer_changes_nothing(path):
    writer = open_writer(path)
    writer.close()
    with pytest.raises(ValueError, match="this writer was closed"):
        writer.commit({}, {})
    with pytest.raises(ValueError, match="this writer was closed"):
        writer.target(0).allocate(2, 1)
    check(writer, HELD)


def test_a_folder_that_may_not_be_written(path, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(folder.disk, "open_or_create", refuse)
    with pytest.raises(ValueError, match=r"lock cannot be written \(Permission denied\): open the context for reading"):
        open_writer(path)
    check(open_reader(path), HELD)


@pytest.mark.parametrize(("version", "age"), [(0, "older than 1"), (4, "newer than 3")])
def test_other_format_versions(path, monkeypatch, version, age):
    with monkeypatch.context() as patched:
        patched.setattr("landmark.contexts.manifest.VERSION", version)
        publish(path, read_manifest(path))
    with pytest.raises(ValueError, match=f"has format version {version}, {age}, which this program reads"):
        open_reader(path)


def test_what_is_no_context(tmp_path):
    with pytest.raises(ValueError, match=r"is not a context: it has no manifest\.json"):
        open_writer(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(ValueError, match="is not the manifest of a context"):
        open_reader(tmp_path)


def test_documents_of_version_1_have_no_sha256(path):
    with open_writer(path) as writer:
        writer.add_document("new", "text", [1], [(0, 4)])
        commit(writer, HELD)
    documents = open_reader(path).documents()
    assert documents[-1].sha256 == hashlib.sha256(b"text").hexdigest()
    as_version_1(path)
    assert [document.sha256 for document in open_reader(path).documents()] == [None] * 3
    with open_writer(path) as writer:
        writer.add_document("newer", "text", [1], [(0, 4)])
        commit(writer, HELD)
    assert [document.sha256 for document in open_reader(path).documents()][2:] == [None, documents[-1].sha256]
    assert json.loads((path / "manifest.json").read_bytes())["version"] == 2
    assert verify(path) == []
