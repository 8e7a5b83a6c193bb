"""One writer: whatever happens to its lock or its folder, it takes no commit of another writer away."""

import os
import shutil

import pytest
from made import HELD, add, check, commit

from landmark.contexts.folder import delete, fork
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import open_writer


@pytest.fixture
def writer(path):
    """A writer that holds something beyond the commit."""
    with open_writer(path) as writer:
        add(writer, HELD, (5,), (6,))
        yield writer


def refused(writer, match):
    with pytest.raises(ValueError, match=f"{match}.*nothing was changed; open the context again"):
        commit(writer, HELD)
    with pytest.raises(ValueError, match=r"an earlier change was refused; open the context again"):
        commit(writer, HELD)


def grow(path, held=HELD, seed=7):
    with open_writer(path) as other:
        return commit(other, add(other, held, (seed,), (seed, seed + 1)))


def whole(path, held):
    check(open_reader(path), held)
    assert verify(path) == []


def copy_of(path, linked):
    """A copy made of hard links, as `cp -al` makes it, or of files."""
    return shutil.copytree(path, path.parent / "copy", copy_function=os.link if linked else shutil.copy2)


def test_a_deleted_lock(path, writer):
    (path / "lock").unlink()
    with open_writer(path) as second:
        held = commit(second, add(second, HELD, (7,), (8, 9)))
        refused(writer, "lock was deleted or replaced")
        whole(path, held)
        held = commit(second, add(second, held, (10,), (11,)))
    whole(path, held)


def test_a_deleted_lock_and_no_commit_yet(path, writer):
    (path / "lock").unlink()
    with open_writer(path) as second:
        refused(writer, "lock was deleted or replaced")
        held = commit(second, add(second, HELD, (7,), (8, 9)))
    whole(path, held)


@pytest.mark.parametrize("linked", [True, False])
def test_a_folder_that_was_replaced(path, writer, linked):
    copy = copy_of(path, linked)
    path.rename(path.parent / "old")
    copy.rename(path)
    (path / "lock").unlink()
    held = grow(path)
    refused(writer, "was moved, replaced or deleted")
    whole(path, held)


def test_a_folder_that_was_deleted_and_made_again(path, writer):
    (path / "lock").unlink()
    delete(path)
    refused(writer, "was moved, replaced or deleted")
    assert not path.exists()


@pytest.mark.parametrize("name", ["segments", "segments/000001.text"])
def test_files_that_were_replaced(path, writer, name):
    place = path / name
    place.rename(place.with_name("old"))
    (shutil.copytree if name == "segments" else shutil.copy2)(place.with_name("old"), place)
    refused(writer, f"{place.name} was moved, replaced or deleted")


def test_a_manifest_that_was_restored(path, writer):
    before = (path / "manifest.json").read_bytes()
    held = commit(writer, add(writer, HELD, (), ()))
    (path / "manifest.json").write_bytes(before)
    refused(writer, "got a commit of another writer")
    assert held.state == 2
    assert (path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("make", [lambda file: None, os.mkfifo])
def test_a_manifest_that_was_removed(path, writer, make):
    (path / "manifest.json").unlink()
    make(path / "manifest.json")
    refused(writer, "lost its manifest")


def test_a_writer_that_begins_a_segment_looks_first(path):
    fork(path, path.parent / "branch")
    with open_writer(path.parent / "branch") as writer:
        (path.parent / "branch" / "lock").unlink()
        with open_writer(path.parent / "branch") as second:
            held = add(second, HELD, (7,), (8,))
            with pytest.raises(ValueError, match="lock was deleted or replaced"):
                add(writer, HELD, (5,), (6,))
            held = commit(second, held)
    whole(path.parent / "branch", held)


@pytest.mark.parametrize("order", [(0, 1, 0, 1), (1, 1, 0, 0), (1, 0, 0, 1)])
def test_a_copy_of_hard_links_grows_alone(path, order):
    both = [path, copy_of(path, linked=True)]
    held = [HELD, HELD]
    for step, which in enumerate(order):
        held[which] = grow(both[which], held[which], seed=10 * step + which)
    for which in (0, 1):
        whole(both[which], held[which])
    delete(path)
    whole(both[1], grow(both[1], held[1]))


def test_a_copy_of_hard_links_under_an_open_writer(path, writer):
    copy = copy_of(path, linked=True)
    with pytest.raises(ValueError, match="is being written by another writer"):
        open_writer(copy)
    (copy / "lock").unlink()
    held = grow(copy)
    mine = commit(writer, add(writer, HELD, (12,), ()))  # behind what the fixture added
    assert mine.state == 2
    assert verify(path) == []
    whole(copy, held)


def test_files_that_another_writer_has_open_are_not_grown(path, writer):
    """Its lock is gone and its names are, but what it writes still reaches the files."""
    copy = copy_of(path, linked=True)
    (copy / "lock").unlink()
    shutil.rmtree(path)
    held = grow(copy)
    add(writer, HELD, (), ())
    writer.add_document("late", "words " * 9, [1], [(0, 1)])
    whole(copy, held)


def test_a_working_directory_may_change(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with open_writer(path.name) as writer:
        monkeypatch.chdir("/")
        held = commit(writer, add(writer, HELD, (5,), (6,)))
    whole(path, held)


def test_a_writer_grows_the_segment_of_the_one_before(path):
    """Closed writers keep no file, also where what they read is still referred to."""
    with open_writer(path) as writer:
        held = commit(writer, add(writer, HELD, (5,), (6,)))
    grow(path, held)
    assert len(open_reader(path).segments) == 1
    assert writer.segments[0].count == 3


def test_a_lock_without_a_number_is_not_printed(path, writer):
    (path / "lock").write_bytes(b"\x1b[31m" * 1000)
    with pytest.raises(ValueError, match=r"another writer \(process not known yet\)"):
        open_writer(path)
