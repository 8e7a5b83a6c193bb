"""Folders made by somebody else: nothing in a context leads to files elsewhere, and nothing in it keeps us waiting."""

import os
import shutil
import tarfile
from contextlib import suppress

import pytest
from made import HEADER, HELD, LAYOUT, add, check, commit

from landmark.contexts.disk import Damage
from landmark.contexts.either import find, info
from landmark.contexts.export import export
from landmark.contexts.folder import delete, fork
from landmark.contexts.manifest import KINDS
from landmark.contexts.snapshot import open_reader
from landmark.contexts.verify import verify
from landmark.contexts.writer import create, open_writer

NAMES = ["lock", "manifest.json", "state-1.safetensors", "segments", *(f"segments/000001.{kind}" for kind in KINDS)]


def grow(path, held=HELD):
    with open_writer(path) as writer:
        return commit(writer, add(writer, held, (5,), (6,)))


DONE = {
    "read": open_reader,
    "append": grow,
    "verify": lambda path: [*map(str, verify(path))],
    "info": info,
    "ls": lambda path: find(path.parent),
    "fork": lambda path: fork(path, path.parent / "branch"),
    "export": lambda path: export(path, path.parent / "one.tar"),
    "delete": delete,
}


@pytest.fixture
def elsewhere(path, tmp_path_factory):
    """A copy of the context, which links in the context may lead to, with bytes behind the committed ones."""
    folder = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(path, folder)
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes() + b"precious")
    return folder


def held_by(folder):
    return {file: file.is_file() and file.read_bytes() for file in folder.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("action", DONE)
def test_no_link_is_followed(path, elsewhere, name, action):
    before = held_by(elsewhere)
    remove(path / name)
    (path / name).symlink_to(elsewhere / name)
    with suppress(Damage, ValueError):
        DONE[action](path)
    assert held_by(elsewhere) == before
    if action == "delete":
        assert not path.exists()


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("make", ["link", "fifo", "folder"])
def test_what_is_no_regular_file_is_damage(path, elsewhere, name, make):
    remove(path / name)
    if make == "link":
        (path / name).symlink_to(elsewhere / name)
    elif make == "fifo":
        os.mkfifo(path / name)
    elif name == "segments":
        return
    else:
        (path / name).mkdir()
    for open_it in (open_reader, open_writer):
        with pytest.raises(Damage, match=f"{name} is not a (regular file|folder of its own)"):
            open_it(path)
    assert [damage.file for damage in verify(path)] == [path / name]


def test_a_link_as_lock_makes_no_file(path, elsewhere):
    remove(path / "lock")
    (path / "lock").symlink_to(elsewhere / "new")
    with pytest.raises(ValueError, match="lock is not a regular file"):
        open_writer(path)
    assert not (elsewhere / "new").exists()
    check(open_reader(path), HELD)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_another_name_elsewhere_is_not_written(path, elsewhere, kind):
    file = elsewhere / f"segments/000001.{kind}"
    (path / f"segments/000001.{kind}").unlink()
    os.link(file, path / f"segments/000001.{kind}")
    os.link(path / "lock", elsewhere / "other lock")
    before = held_by(elsewhere)
    grow(path)
    assert held_by(elsewhere) == before
    assert verify(path) == []


def test_deletion_removes_what_is_a_contexts_alone(path, elsewhere):
    link = path.parent / "link"
    link.symlink_to(path)
    with pytest.raises(ValueError, match="it is a link; give the folder that it leads to"):
        delete(link)
    (path / "segments/000009.text").mkdir()
    with pytest.raises(ValueError, match=r"000009\.text is not part of one"):
        delete(path)
    check(open_reader(link), HELD)


def test_stray_folders_stay(path):
    (path / "segments/000009.text").mkdir()
    (path / "state-9.safetensors").mkdir()
    grow(path)
    assert (path / "segments/000009.text").exists()


def test_nothing_is_made_within_a_context(path):
    for inside in (path / "new", path / "segments" / "new", path / "segments/../new"):
        for make in (fork, export, lambda _, to: create(to, HEADER, LAYOUT)):
            with pytest.raises(ValueError, match="lies in the context"):
                make(path, inside)
    assert not list(path.rglob("new*"))


def test_what_is_made_has_no_more_permissions_than_the_folder(path, tmp_path):
    before = os.umask(0)
    try:
        path.chmod(0o750)
        held = grow(path)
        fork(path, tmp_path / "branch")
        grow(tmp_path / "branch", held)
        export(path, tmp_path / "one.tar")
    finally:
        os.umask(before)
    made = [path / "state-2.safetensors", path / "manifest.json", tmp_path / "one.tar"]
    made += [tmp_path / "branch", *(tmp_path / "branch").glob("*"), *(tmp_path / "branch/segments").glob("000002.*")]
    assert len(made) > 12
    assert [file for file in made if file.stat().st_mode & 0o027] == []
    with tarfile.open(tmp_path / "one.tar") as tar:
        modes = {member.name: member.mode for member in tar}
    assert modes["one"] == modes["one/segments"] == 0o750
    assert all(not mode & 0o027 for mode in modes.values())


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
