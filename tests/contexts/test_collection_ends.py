"""A change of a collection that is cut off anywhere was made or was not; whoever comes next goes on."""

import errno
import os
import random
import resource
import shutil
from pathlib import Path

import pytest
from children import command, run
from collecting import HEADER, STATES, Session, write
from faults import LOSSES, calls_of, cut_twice, refuse_a_call
from forking import logits
from killed_commands import many_commits, write_texts
from made import LAYOUT

from landmark import Collection, Context
from landmark.contexts.collection_folder import open_set, verify_collection
from landmark.contexts.collection_manifest import DOCUMENTS, CollectionManifest, read_collection
from landmark.contexts.collection_writer import CollectionWriter

STEP = 29  # every 29th call, with another start for each kind of fault


def calls_of_a_session(root):
    root.mkdir()
    session = Session(root)
    calls = calls_of(session, root)
    assert session.sure == len(STATES) - 1
    assert not session.path.exists()
    return calls


@pytest.mark.parametrize("number", range(len(LOSSES)), ids=LOSSES)
def test_power_cut(tmp_path, number):
    total = calls_of_a_session(tmp_path / "whole")
    assert total > 150
    for at in range(1 + number, total + 1, STEP):
        root = tmp_path / str(at)
        root.mkdir()
        session = Session(root)
        first, _ = cut_twice(session, root, at, again=3 + at * 7 % 60, lost=LOSSES[number])
        assert first
        assert not session.path.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_refused_call(tmp_path, number):
    total = calls_of_a_session(tmp_path / "whole")
    for at in range(1 + number % STEP, total + 1, STEP):
        root = tmp_path / str(at)
        root.mkdir()
        session = Session(root)
        refuse_a_call(session, root, at, number)
        assert not session.path.exists()


def limit_with(free: int) -> int:
    """The limit of open files under which so many numbers of files are free."""
    taken = {int(name) for name in os.listdir("/dev/fd")}
    limit = 0
    while limit - sum(number < limit for number in taken) < free:
        limit += 1
    return limit


def test_many_documents_need_many_files(tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = tmp_path / "set"
    with CollectionWriter.create(path, CollectionManifest(0, HEADER, LAYOUT)) as writer:
        writer.publish(tuple(write(path, str(number), number) for number in range(10)))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with(free=30), hard))
        assert len(open_set(path).segments) == 10
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with(free=30), hard))
        monkeypatch.setattr("landmark.contexts.collection_folder._allow_files", lambda count: None)
        with pytest.raises(ValueError, match="more files than this process may hold open"):
            open_set(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", ["read", "add", "replace", "remove"])
def test_a_killed_command_is_finished_by_the_same_command(name, tmp_path, model):
    """What was there before is there, and the second command leaves what an undisturbed one does."""
    files = [str(file) for file in write_texts(tmp_path / "texts", 3, 40)]
    base, work, scratch = tmp_path / "base", tmp_path / "work", tmp_path / "scratch"
    scratch.mkdir()
    with many_commits(), Collection.create(base, model) as collection:
        for file in files[:2]:
            collection.add(Path(file))
    logits(Context.open(base, model))  # processes that are forked from here need not compile anything
    arguments = {
        "read": ("read", "--apart", *files, "--out", work, "--model", model.name_or_path),
        "add": ("add", work, files[2]),
        "replace": ("add", work, files[1], "--replace"),
        "remove": ("remove", work, files[0]),
    }[name]

    def begin():
        shutil.rmtree(work, ignore_errors=True)
        if name != "read":
            shutil.copytree(base, work)

    def held():
        context = Context.open(work, model)
        names = [(member.name, member.sha256) for member in read_collection(work).members]
        folders = {path.name for path in (work / DOCUMENTS).iterdir()}
        assert folders == {member.key for member in read_collection(work).members}
        return names, logits(context).numpy().tobytes()

    if name == "replace":
        with open(files[1], "a") as file:
            file.write("and another end . ")
    with many_commits():
        begin()
        undisturbed = run(command(*arguments), scratch)
        assert undisturbed.code == 0, undisturbed.error
        expected = held()
        total, draw = undisturbed.disk_calls, random.Random(name)
        for at in draw.sample(range(1, total + 1), min(5, total)):
            begin()
            first = run(command(*arguments), scratch, kill_at=at)
            assert first.code == -9
            if name != "read":
                assert verify_collection(work) == []
            again = run(command(*arguments), scratch)
            gone = name == "remove" and again.code == 2 and "no document named" in again.error
            assert again.code == 0 or gone, again.error
            assert held() == expected
            assert verify_collection(work) == []
