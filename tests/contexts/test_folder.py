"""Locks, deletion, listing, forks."""

import errno

import pytest
from made import HEADER, HELD, LAYOUT, add, check, commit, names

from landmark.contexts import disk
from landmark.contexts.either import find, info
from landmark.contexts.folder import delete, fork
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import open_writer


def test_a_fork_shares_its_files_and_goes_on_alone(path, tmp_path):
    other = tmp_path / "other"
    fork(path, other)
    assert (path / "segments/000001.blocks").samefile(other / "segments/000001.blocks")
    with open_writer(path) as trunk, open_writer(other) as branch:
        trunk_held = commit(trunk, add(trunk, HELD, (5,), (6,)))
        branch_held = commit(branch, add(branch, HELD, (7,), (8, 9)))
    check(open_reader(path), trunk_held)
    check(open_reader(other), branch_held)
    delete(path)
    check(open_reader(other), branch_held)


def test_a_fork_leaves_out_what_is_not_committed(path, tmp_path):
    with open_writer(path) as writer:
        add(writer, HELD, (5,), (6,))
        fork(path, tmp_path / "other")
    check(open_reader(tmp_path / "other"), HELD)


def test_fork_waits_for_no_commit(path, tmp_path, monkeypatch):
    """A commit between the reading of the manifest and the linking of its state is followed."""
    with open_writer(path) as writer:
        usual, after = disk.link, []

        def link(source, target):
            if not after:
                after.append(commit(writer, add(writer, HELD, (5,), (6,))))
            usual(source, target)

        monkeypatch.setattr(disk, "link", link)
        fork(path, tmp_path / "other")
    check(open_reader(tmp_path / "other"), after[0])


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_a_fork_that_cannot_share_leaves_nothing(path, tmp_path, monkeypatch, number):
    def refuse(source, target):
        raise OSError(number, "refused")

    monkeypatch.setattr(disk, "link", refuse)
    with pytest.raises(ValueError, match=r"cannot share the bytes of .*: fork to a folder of the same file system, or"):
        fork(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    check(open_reader(path), HELD)


def test_a_fork_does_not_replace(path):
    with pytest.raises(ValueError, match="exists: give a new folder"):
        fork(path, path)
    check(open_reader(path), HELD)


def test_delete_refuses_what_is_no_context(path, tmp_path):
    (tmp_path / "file").write_text("x")
    (path / "notes.txt").write_text("mine")
    for kept in (tmp_path / "missing", tmp_path / "file", tmp_path, path):
        with pytest.raises(ValueError, match="cannot be deleted as a context"):
            delete(kept)
    (path / "notes.txt").unlink()
    with open_writer(path), pytest.raises(ValueError, match="is being written"):
        delete(path)
    check(open_reader(path), HELD)


def test_delete_refuses_another_manifest(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(ValueError, match="cannot be deleted as a context"):
        delete(tmp_path)
    assert names(tmp_path) == {"manifest.json"}


def test_a_damaged_context_can_be_deleted(path):
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes()[:-2])
    assert [damage.file.name for damage in verify(path)] == ["manifest.json"]
    delete(path)
    assert not path.exists()


def test_blocks_can_be_read_after_deletion(path):
    snapshot = open_reader(path)
    blocks = snapshot.segments[0].blocks
    delete(path)
    assert blocks.file.size == 2 * LAYOUT.block_bytes


def test_find_and_info(path, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    fork(path, tmp_path / "another")
    assert find(tmp_path) == [tmp_path / "another", path]
    with pytest.raises(ValueError, match="is not a folder"):
        find(tmp_path / "file")
    found = info(path)
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in ("manifest.json", "lock")]
    assert found["bytes"] == sum(file.stat().st_size for file in files)
    assert (found["header"], found["documents"], found["blocks"], found["tokens"]) == (HEADER, 2, 2, 3)
    assert found["shared_bytes"] == 0
    assert info(tmp_path / "another")["shared_bytes"] > 0
