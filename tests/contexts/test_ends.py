"""What is killed at any call is done by the same call again; readers outlive what they read."""

import resource
import tarfile
from contextlib import suppress

import pytest
from faults import FaultyDisk, PowerCut
from made import HEADER, HELD, LAYOUT, Content, check, names

from landmark.contexts import disk
from landmark.contexts.export import export
from landmark.contexts.folder import delete, fork, is_unused
from landmark.contexts.manifest import has_manifest
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create


def kills(root, action):
    """Kills `action` before each of the calls that change something; yields after each, and ends when it comes through.

    Files of a killed process are as it left them, and its locks are released.
    """
    faulty, at = FaultyDisk(root), 0
    while True:
        at += 1
        try:
            with faulty.failing(at):
                action()
        except PowerCut:
            yield at
        else:
            assert at > 5
            return


def test_a_killed_creation_is_made_by_the_next(tmp_path):
    path = tmp_path / "one"
    for _ in kills(tmp_path, lambda: create(path, HEADER, LAYOUT).close()):
        if not has_manifest(path):
            assert is_unused(path)
            create(path, HEADER, LAYOUT).close()
        check(open_reader(path), Content())
        assert not is_unused(path)
        delete(path)


def test_a_killed_fork_is_made_by_the_next(path, tmp_path):
    branch = tmp_path / "branch"
    for _ in kills(tmp_path, lambda: fork(path, branch)):
        if not has_manifest(branch):
            fork(path, branch)
        check(open_reader(branch), HELD)
        assert verify(branch) == []
        delete(branch)
    check(open_reader(path), HELD)


def test_a_killed_export_is_made_by_the_next(path, tmp_path):
    file = tmp_path / "one.tar"
    for at in kills(tmp_path, lambda: export(path, file)):
        if not file.exists():
            export(path, file)
        with tarfile.open(file) as tar:
            tar.extractall(tmp_path / str(at), filter="data")
        check(open_reader(tmp_path / str(at) / "one"), HELD)
        file.unlink()
        assert not (tmp_path / "one.tar.tmp").exists()


def test_a_killed_deletion_is_finished_by_the_next(path, tmp_path):
    fork(path, tmp_path / "kept")
    for at in range(1, 30):
        branch = tmp_path / str(at)
        fork(path, branch)
        with FaultyDisk(tmp_path).failing(at), suppress(PowerCut):
            delete(branch)
        if branch.exists():
            delete(branch)
        assert not branch.exists()
    check(open_reader(tmp_path / "kept"), HELD)


def test_an_export_does_not_take_anothers_file(path, tmp_path):
    partial = tmp_path / "one.tar.tmp"
    for make in (lambda: partial.write_text("mine"), lambda: partial.symlink_to(tmp_path / "elsewhere")):
        make()
        before = names(tmp_path)
        with pytest.raises(ValueError, match=r"one\.tar\.tmp exists"):
            export(path, tmp_path / "one.tar")
        assert names(tmp_path) == before
        partial.unlink()
    (tmp_path / "one.tar").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"one\.tar exists"):
        export(path, tmp_path / "one.tar")


def test_what_is_left_of_a_deletion_is_not_taken_for_a_new_folder(path):
    """Segments without a manifest may be all that is left of a context."""
    (path / "manifest.json").unlink()
    assert not is_unused(path)
    with pytest.raises(ValueError, match="exists: give a new folder"):
        create(path, HEADER, LAYOUT)
    delete(path)


@pytest.mark.parametrize("name", ["lock", "manifest.json.tmp"])
def test_anothers_file_of_a_common_name_is_not_taken_for_a_remainder(tmp_path, name):
    (tmp_path / name).write_text("12 is mine")
    assert not is_unused(tmp_path)
    with pytest.raises(ValueError, match="cannot be deleted as a context"):
        delete(tmp_path)
    assert (tmp_path / name).read_text() == "12 is mine"


@pytest.mark.parametrize("data", [b"", b"\0" * 4096])
def test_a_context_whose_manifest_was_lost_can_be_deleted(path, data):
    (path / "manifest.json").write_bytes(data)
    delete(path)
    assert not path.exists()


def test_a_reader_outlives_the_context(path):
    snapshot = open_reader(path)
    delete(path)
    check(snapshot, HELD)
    assert [part.token for part in snapshot.segments[0].parts()]


def test_a_context_that_is_deleted_while_it_is_opened_is_not_damaged(path, monkeypatch):
    usual = disk.open_inner

    def after_deletion(place):
        monkeypatch.setattr(disk, "open_inner", usual)
        delete(path)
        return usual(place)

    monkeypatch.setattr(disk, "open_inner", after_deletion)
    with pytest.raises(ValueError, match="was deleted while it was opened"):
        open_reader(path)


def test_too_many_files_for_the_process(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(path / "lock") as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + 5, hard))
    try:
        with pytest.raises(ValueError, match=r"more files than this process may hold open: raise the limit"):
            open_reader(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check(open_reader(path), HELD)
