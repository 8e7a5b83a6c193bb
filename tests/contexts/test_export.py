"""Export: a tar file that is a context where it is unpacked."""

import errno
import tarfile

import pytest
from made import HEADER, LAYOUT, Content, add, check, commit, short_segments

from landmark.contexts import disk
from landmark.contexts.either import info
from landmark.contexts.export import export
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer


def test_export_is_a_context_where_it_is_unpacked(tmp_path):
    path, file, calls = tmp_path / "one", tmp_path / "one.tar", []
    with short_segments(2), create(path, HEADER, LAYOUT) as writer:
        held = commit(writer, add(writer, Content(), (1,), (1, 2, 3)))
        held = commit(writer, add(writer, held, (2,), (4,)))
        add(writer, held, (3,), (5,))
        export(path, file, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (info(path)["bytes"],) * 2
    with tarfile.open(file) as tar:
        tar.extractall(tmp_path / "elsewhere", filter="data")
    check(open_reader(tmp_path / "elsewhere" / "one"), held)
    assert verify(tmp_path / "elsewhere" / "one") == []
    with open_writer(tmp_path / "elsewhere" / "one") as writer:
        commit(writer, add(writer, held, (3,), (5,)))
    with pytest.raises(ValueError, match=r"one\.tar exists: give another file"):
        export(path, file)


def test_an_empty_context_can_be_exported(tmp_path):
    create(tmp_path / "one", HEADER, LAYOUT).close()
    export(tmp_path / "one", tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        tar.extractall(tmp_path / "elsewhere", filter="data")
    open_writer(tmp_path / "elsewhere" / "one").close()


def test_a_failed_export_leaves_nothing(path, tmp_path, monkeypatch):
    def refuse(file, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write", refuse)
    with pytest.raises(OSError, match="No space left"):
        export(path, tmp_path / "one.tar")
    assert not list(tmp_path.glob("one.tar*"))
