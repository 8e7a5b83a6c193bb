"""Collections on other file systems: one in memory, and S3 as moto plays it. Documents are made without a model."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

fsspec = pytest.importorskip("fsspec", reason="the extra remote")

import torch  # noqa: E402
from collecting import HEADER, STATES, text_of, write  # noqa: E402
from made import LAYOUT  # noqa: E402
from storing import s3_server  # noqa: E402

from landmark.contexts import remote, remote_cache  # noqa: E402
from landmark.contexts.collection_folder import open_set, verify_collection  # noqa: E402
from landmark.contexts.collection_manifest import DOCUMENTS, CollectionManifest, Member, read_collection  # noqa: E402
from landmark.contexts.disk import Damage  # noqa: E402
from landmark.contexts.remote import RemoteWriter, local_copy, mending  # noqa: E402
from landmark.contexts.remote_cache import Copy, cache_folder, member_bytes  # noqa: E402
from landmark.contexts.writer import create  # noqa: E402
from landmark.files import disk_bytes, files_below  # noqa: E402
from landmark.urls import path_of, shown, url_of  # noqa: E402

EMPTY = CollectionManifest(0, HEADER, LAYOUT)


@pytest.fixture(scope="module")
def s3():
    with s3_server() as settings:
        yield settings


@pytest.fixture(params=["memory", "s3"])
def url(request, tmp_path, monkeypatch):
    """A place for a collection, and an empty cache."""
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
    elsewhere(tmp_path / "cache", monkeypatch)
    yield f"{request.param}://bucket/{tmp_path.name}"
    release()


@pytest.fixture
def memory(tmp_path, monkeypatch):
    elsewhere(tmp_path / "cache", monkeypatch)
    yield f"memory://bucket/{tmp_path.name}"
    release()


def elsewhere(cache, monkeypatch):
    """What another machine has: another cache."""
    release()
    monkeypatch.setenv(remote_cache.FOLDER, str(cache))


def release():
    """What the end of the process does: no copy is in use any more."""
    while remote_cache._held:
        os.close(remote_cache._held.popitem()[1])


def changed(writer, wanted):
    """Makes `wanted`, numbers of texts by name, the documents."""
    writer.publish(tuple(write(writer.place.path, name, number) for name, number in wanted.items()))


def names(path):
    return {member.name for member in read_collection(path).members}


def files_at(url):
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {found.removeprefix(f"{root}/"): files.cat_file(found) for found in files.find(root)}


def test_every_state_is_what_another_machine_finds(url, tmp_path, monkeypatch):
    with RemoteWriter.create_at(url, EMPTY) as writer:
        for number, state in enumerate(STATES[1:]):
            elsewhere(tmp_path / "cache", monkeypatch)
            changed(writer, state)
            elsewhere(tmp_path / f"machine {number % 2}", monkeypatch)  # two, which are behind each time
            path = local_copy(url)
            assert names(path) == set(state)
            assert verify_collection(path) == []
            assert len(open_set(path).documents()) == len(state)
            assert len([*(path / DOCUMENTS).iterdir()]) == len(state)
    kept = files_at(url)
    keys = {member.key for member in writer.manifest.members}
    assert {name.split("/")[1] for name in kept if name.startswith(DOCUMENTS)} == keys
    assert [name for name in kept if "/" not in name] == [f"collection-{len(STATES) - 1}.json"]


def test_what_is_there_is_not_fetched_again(memory, tmp_path, monkeypatch):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2})
        elsewhere(tmp_path / "other", monkeypatch)
        local_copy(memory)
        fetched = []
        usual = remote_cache.Store.get_documents
        monkeypatch.setattr(
            remote_cache.Store, "get_documents", lambda *given: fetched.extend(given[1]) or usual(*given)
        )
        local_copy(memory)
        assert fetched == []
        monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
        changed(writer, {"a": 1, "b": 2, "c": 4})
        monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "other"))
        local_copy(memory)
        assert fetched == [member.key for member in writer.manifest.members if member.name == "c"]


@pytest.mark.parametrize("commits", [True, False])
def test_a_document_that_was_read_in_part_is_fetched(memory, tmp_path, monkeypatch, commits):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2})
    elsewhere(tmp_path / "other", monkeypatch)
    path = Copy(memory).folder
    (path / DOCUMENTS).mkdir(parents=True)
    with create(path / DOCUMENTS / writer.manifest.members[0].key, HEADER, LAYOUT) as part:
        part.add_document("document", text_of(1), range(4), [(0, 1)] * 4)
        if commits:
            part.commit({"window": torch.zeros(1)}, {"commit": 1})
    assert len(open_set(local_copy(memory)).documents()) == 2
    assert verify_collection(path) == []


def test_a_cache_that_was_deleted_is_made_anew(memory, tmp_path):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1})
        shutil.rmtree(cache_folder())
        assert verify_collection(local_copy(memory)) == []
        with pytest.raises(ValueError, match="was moved, replaced or deleted while this writer"):
            writer.publish(())
    path = local_copy(memory)
    assert len(open_set(path).documents()) == 1
    shutil.rmtree(cache_folder())
    assert local_copy(path) == path  # a server opens the folder again
    assert len(open_set(path).documents()) == 1


DAMAGES = {
    "a flipped bit": lambda path: _flip(path / "segments" / "000001.blocks"),
    "a file that was cut short": lambda path: os.truncate(path / "segments" / "000001.landmarks", 5),
    "a file that is missing": lambda path: (path / "segments" / "000001.text").unlink(),
    "the manifest of a document": lambda path: _flip(path / "manifest.json"),
    "a document": shutil.rmtree,
    "the manifest": lambda path: _flip(path.parents[1] / "collection.json"),
}


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def _sound(path):
    for damage in verify_collection(path):
        raise damage
    return open_set(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_the_copy_is_fetched_again(memory, tmp_path, monkeypatch, damage):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2, "c": 3})
    elsewhere(tmp_path / "other", monkeypatch)
    path = local_copy(memory)
    for member in read_collection(path).members[:2]:
        DAMAGES[damage](path / DOCUMENTS / member.key)
        if damage == "the manifest":
            break
    with pytest.raises(Damage, match=f"was part of a copy of {memory}, and is deleted: open that again, which fetches"):
        _sound(path)
    assert len(mending(lambda: _sound(path)).documents()) == 3
    DAMAGES[damage](path / DOCUMENTS / read_collection(path).members[0].key)
    release()
    assert len(mending(lambda: _sound(local_copy(memory))).documents()) == 3


def test_damage_in_the_copy_and_in_the_store(memory, tmp_path, monkeypatch):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1})
    elsewhere(tmp_path / "other", monkeypatch)
    path = local_copy(memory)
    name = f"{DOCUMENTS}/{read_collection(path).members[0].key}/segments/000001.blocks"
    _flip(path / name)
    fsspec.filesystem("memory").pipe_file(f"{memory}/{name}", (path / name).read_bytes())
    with pytest.raises(ValueError, match=f"^{memory}/{name} is damaged in block 1, layer 1 in the store itself"):
        mending(lambda: _sound(path))


def test_who_changes_a_collection_leaves_what_others_opened(memory, tmp_path, monkeypatch):
    """A server opens the folder of its copy again, whatever writers on its machine and on others do."""
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2})
    path = local_copy(memory)
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "another machine"))
    with RemoteWriter.open_at(memory) as writer:
        changed(writer, {"b": 2, "c": 4})
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
    with RemoteWriter.open_at(memory) as writer:
        assert {member.name for member in writer.manifest.members} == {"b", "c"}
        assert names(path) == {"a", "b"}
        assert _sound(path)
        with pytest.raises(ValueError, match=f"{memory} is being written by another writer"):
            RemoteWriter.open_at(memory)
        writer.publish((*writer.manifest.members, write(writer.place.path, "d", 5)))
        assert names(path) == {"a", "b"}  # c was never here
        assert _sound(path)
        assert names(local_copy(memory)) == {"b", "c", "d"}
        assert _sound(path)
        changed(writer, {"c": 4})
        assert names(path) == {"c"}  # all that is left was here
        assert _sound(path)
        assert len([*(path / DOCUMENTS).iterdir()]) == 1


def test_an_update_that_breaks_off_leaves_the_set_from_before(memory, tmp_path, monkeypatch):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2})
        elsewhere(tmp_path / "other", monkeypatch)
        path = local_copy(memory)
        monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
        changed(writer, {"b": 2, "c": 4})
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "other"))
    with monkeypatch.context() as broken:
        broken.setattr(type(fsspec.filesystem("memory")), "get", _cut_off)
        with pytest.raises(ValueError, match="cannot be reached"):
            local_copy(memory)
    assert names(path) == {"a", "b"}
    assert _sound(path)
    assert names(local_copy(memory)) == {"b", "c"}
    assert len([*(path / DOCUMENTS).iterdir()]) == 2


def test_writing_is_bounded_too(memory, tmp_path, monkeypatch):
    def make_room(writer, number):
        _, key, *rest = vars(member := write(tmp_path / "elsewhere", "x", number)).values()
        writer.make_room(Member("x", key, *rest))
        return member

    (tmp_path / "elsewhere" / DOCUMENTS).mkdir(parents=True)
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        for number in range(1, 4):
            make_room(writer, number)
            changed(writer, {str(one): one for one in range(1, number + 1)})
        used = sum(disk_bytes(file) for file in files_below([cache_folder()]))
        monkeypatch.setenv(remote_cache.BYTES, str(used))
        size = member_bytes(make_room(writer, 4), LAYOUT)
        # What was uploaded gives way, since no process has opened it.
        assert 0 < len([*(Copy(memory).folder / DOCUMENTS).iterdir()]) < 3
        local_copy(memory)
        with pytest.raises(ValueError, match="in use leave too few of them for the document 'x': set"):
            make_room(writer, 5)
        monkeypatch.setenv(remote_cache.BYTES, str(size - 1))
        with pytest.raises(ValueError, match=f"the document 'x' has {size:,} bytes, and .* may hold {size - 1:,}: set"):
            make_room(writer, 4)


def test_a_set_that_nobody_opened_makes_room_for_the_next(memory, tmp_path, monkeypatch):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1})
        elsewhere(tmp_path / "other", monkeypatch)
        local_copy(memory)
        used = sum(disk_bytes(file) for file in files_below([cache_folder()]))
        monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
        changed(writer, {"b": 4})
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "other"))
    monkeypatch.setenv(remote_cache.BYTES, str(used + 16384))
    with pytest.raises(ValueError, match="in use leave too few"):
        local_copy(memory)
    release()
    assert names(local_copy(memory)) == {"b"}


def test_a_description_leaves_the_copy_as_it_is(memory, tmp_path, monkeypatch):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1})
        elsewhere(tmp_path / "other", monkeypatch)
        path = local_copy(memory)
        monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
        changed(writer, {"a": 1, "b": 2})
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "other"))
    facts, members = remote.described(memory)
    assert (facts["generation"], [member.name for member in members]) == (2, ["a", "b"])
    assert len(open_set(path).documents()) == 1  # as another process that has the copy would open it again


def test_of_two_writers_one_fails(url, tmp_path, monkeypatch):
    first = RemoteWriter.create_at(url, EMPTY)
    elsewhere(tmp_path / "other", monkeypatch)
    second = RemoteWriter.open_at(url)
    changed(second, {"b": 2})
    monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="changed by another writer"):
        changed(first, {"a": 1})
    assert names(local_copy(url)) == {"b"}
    for writer in (first, second):
        writer.close()
    with pytest.raises(ValueError, match="exists: give another URL"):
        RemoteWriter.create_at(url, EMPTY)


def test_an_interrupted_upload_changes_nothing(memory, tmp_path, monkeypatch):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1})
        before, files = read_collection(writer.place), fsspec.filesystem("memory")
        for call in ("put", "pipe_file"):
            with monkeypatch.context() as broken:
                broken.setattr(type(files), call, _cut_off)
                with pytest.raises(ValueError, match=r"cannot be reached \(TimeoutError: no answer\): check"):
                    changed(writer, {"a": 1, "b": 2})
            assert writer.manifest == before
            elsewhere(tmp_path / f"after {call}", monkeypatch)
            assert read_collection(local_copy(memory)) == before
            monkeypatch.setenv(remote_cache.FOLDER, str(tmp_path / "cache"))
        changed(writer, {"a": 1, "b": 2})
        with monkeypatch.context() as broken:
            broken.setattr(type(files), "rm", _cut_off)
            with pytest.raises(ValueError, match="the change was made, and the next one deletes"):
                changed(writer, {"a": 1})
    gone = before.followed_by(()).removed  # of `a`; the documents of `b` are still there
    assert len({name.split("/")[1] for name in files_at(memory) if "/" in name} - set(gone)) == 1
    with RemoteWriter.open_at(memory) as writer:
        assert [member.name for member in writer.manifest.members] == ["a"]
    assert {name.split("/")[1] for name in files_at(memory) if "/" in name} == set(gone)


def test_what_is_gone_is_not_removed_again(url, monkeypatch):
    with RemoteWriter.create_at(url, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2})
        changed(writer, {"a": 1})
    removed = []
    monkeypatch.setattr(remote.Store, "remove", lambda _, name: removed.append(name))
    RemoteWriter.open_at(url).close()
    assert removed == []


def _cut_off(*_, **__):
    raise TimeoutError("no answer")


@pytest.mark.parametrize("kind", ["blocks", "landmarks", "tokens", "text", "documents", "parts", "manifest", "missing"])
def test_a_corrupted_object_is_named_and_not_kept(memory, tmp_path, monkeypatch, kind):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1})
        key = writer.manifest.members[0].key
    files, root = fsspec.core.url_to_fs(f"{memory}/{DOCUMENTS}/{key}")
    place = f"{root}/manifest.json" if kind == "manifest" else f"{root}/segments/000001.{kind}"
    if kind == "missing":
        files.rm(f"{root}/segments/000001.blocks")
    else:
        data = bytearray(files.cat_file(place))
        data[-2] ^= 1
        files.pipe_file(place, bytes(data))
    elsewhere(tmp_path / "other", monkeypatch)
    with pytest.raises(ValueError, match=f"{memory}/{DOCUMENTS}/{key}|{memory} is damaged, a file") as raised:
        local_copy(memory)
    assert "\n" not in str(raised.value)
    assert [*(Copy(memory).folder / DOCUMENTS).iterdir()] == []


def test_a_corrupted_manifest(memory, tmp_path, monkeypatch):
    RemoteWriter.create_at(memory, EMPTY).close()
    fsspec.filesystem("memory").pipe_file(f"{memory}/collection-1.json", b'{"crc32": "00000000",\n}')
    with pytest.raises(ValueError, match=f"the manifest 1 of {memory} is damaged"):
        local_copy(memory)


def test_the_cache_is_bounded_and_the_least_recently_used_goes_first(memory, tmp_path, monkeypatch):
    urls = [f"{memory}/{number}" for number in range(3)]
    for number, one in enumerate(urls):
        with RemoteWriter.create_at(one, EMPTY) as writer:
            changed(writer, {"a": 3 * number, "b": 3 * number + 1})
        size = sum(member_bytes(member, LAYOUT) for member in writer.manifest.members)
    elsewhere(tmp_path / "small", monkeypatch)

    def held():
        return [len([*(Copy(one).folder / DOCUMENTS).glob("*")]) for one in urls]

    def used():
        return sum(disk_bytes(file) for file in files_below([cache_folder()]))

    for one in urls[:2]:
        local_copy(one)
        os.utime(Copy(one).folder.with_name(Copy(one).folder.name + ".used"), (int(one[-1]), int(one[-1])))
    most = used() + size * 2 // 3  # so that one document of the first has to go
    monkeypatch.setenv(remote_cache.BYTES, str(most))
    with pytest.raises(ValueError, match="collections that are in use leave too few"):
        local_copy(urls[2])
    assert held() == [2, 2, 0]
    release()
    opened = open_set(local_copy(urls[2]))
    assert held() == [1, 2, 2]
    assert used() <= most
    monkeypatch.setenv(remote_cache.BYTES, str(size // 2))
    with pytest.raises(ValueError, match=f"has [0-9,]+ bytes, and .* may hold .*: set {remote_cache.BYTES} to more"):
        local_copy(urls[0])
    shutil.rmtree(tmp_path / "small")
    assert opened.text(opened.documents()[0])  # what is open stays readable


def test_a_full_disk_keeps_what_was_there(memory, tmp_path, monkeypatch):
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1})
    elsewhere(tmp_path / "full", monkeypatch)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec.filesystem("memory").__class__, "get", full)
        with pytest.raises(
            ValueError, match=r"full cannot hold copies of collections \(No space left.*: set LANDMARK_"
        ):
            local_copy(memory)
    assert names(local_copy(memory)) == {"a"}


def test_a_cache_that_cannot_be_written(memory, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    elsewhere(tmp_path / "file", monkeypatch)
    with pytest.raises(ValueError, match=r"file cannot hold copies of collections \(File exists\): set LANDMARK_"):
        local_copy(memory)
    elsewhere(tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(remote_cache, "_open_lock", _read_only)
    with pytest.raises(ValueError, match=r"cache cannot hold copies of collections \(Read-only file system\)"):
        local_copy(memory)


def _read_only(path):
    raise OSError(errno.EROFS, "Read-only file system", str(path))


@pytest.mark.parametrize("when", ["get_documents", "_get"])
def test_a_cache_that_is_deleted_meanwhile(memory, tmp_path, monkeypatch, when):
    """What is missing then is not missing in the store."""
    with RemoteWriter.create_at(memory, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2})
    elsewhere(tmp_path / "other", monkeypatch)
    usual, calls = getattr(remote_cache.Store, when), []

    def deleting(*given):
        usual(*given)
        if not calls:
            shutil.rmtree(tmp_path / "other")
        calls.append(1)

    with monkeypatch.context() as patch:
        patch.setattr(remote_cache.Store, when, deleting)
        with pytest.raises(ValueError, match=f"{tmp_path}/other/.* was deleted while {memory} was fetched: open that"):
            local_copy(memory)
    assert len(open_set(local_copy(memory)).documents()) == 2


KILLED = """
import os, sys
from landmark.contexts import remote_cache
calls = 0
usual = os.rename
def rename(*given, **named):
    usual(*given, **named)
    os.kill(os.getpid(), 9)
os.rename = rename
"""


def test_a_killed_fetch_is_taken_up(url, tmp_path, monkeypatch, request):
    if url.startswith("memory"):
        pytest.skip("another process does not see it")
    with RemoteWriter.create_at(url, EMPTY) as writer:
        changed(writer, {"a": 1, "b": 2})
    elsewhere(tmp_path / "other", monkeypatch)
    code = f"{KILLED}\nfrom landmark.contexts.remote import local_copy; local_copy({url!r})"
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=300, capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    assert len([*(Copy(url).folder / DOCUMENTS).iterdir()]) == 1
    assert verify_collection(local_copy(url)) == []
    assert len([*(Copy(url).folder / DOCUMENTS).iterdir()]) == 2


def test_stores_that_cannot_be_reached(tmp_path, monkeypatch, s3):
    elsewhere(tmp_path / "cache", monkeypatch)
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="no collection at s3://bucket/nothing: `landmark read --apart"):
        local_copy("s3://bucket/nothing")
    with pytest.raises(ValueError, match="s3://nobody/x cannot be reached"):
        RemoteWriter.create_at("s3://nobody/x", EMPTY)
    with pytest.raises(ValueError, match=r"nonsense://x cannot be opened .*: check the address"):
        local_copy("nonsense://x")
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.core.get_filesystem_class", _not_installed)
        with pytest.raises(ValueError, match=r"Install s3fs.*pip install 'landmark-attention\[remote\]'"):
            local_copy("s3://bucket/other")


def test_what_is_read_only_says_so(tmp_path, monkeypatch):
    elsewhere(tmp_path / "cache", monkeypatch)
    for change in (remote.is_unused, remote.local_manifest, lambda url: RemoteWriter.create_at(url, EMPTY)):
        with pytest.raises(
            ValueError, match=r"^http://127.0.0.1:9/x is read-only: its collection can be asked; write to"
        ):
            change("http://127.0.0.1:9/x")
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:9/x cannot be reached \(ClientConnector"):
        local_copy("http://127.0.0.1:9/x")


def test_a_file_system_that_cannot_write_is_read_only(memory, monkeypatch):
    def refuses(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refuses)
    with pytest.raises(ValueError, match=f"^{memory} is read-only: its collection can be asked"):
        RemoteWriter.create_at(memory, EMPTY)


def _not_installed(*_):
    raise ImportError("Install s3fs to access S3")


def test_paths_and_urls():
    for given in ("s3://bucket/library", Path("s3://bucket/library"), "S3://bucket/library/"):
        assert url_of(given) == "s3://bucket/library" == shown(given)
    assert url_of("library") is url_of(Path("/a:/b")) is url_of("C:/x") is None
    for given in ("file:///a/b", Path("file:///a/b"), "/a/b"):
        assert url_of(given) is None
        assert path_of(given) == Path("/a/b")
    with pytest.raises(ValueError, match="s3://bucket/x is on another file system: give a folder of this machine"):
        path_of("s3://bucket/x")
    for given in ("s3://", Path("s3://"), "s3:", "file://", Path("file://"), "file:///", Path("memory:///")):
        for understood in (url_of, path_of, shown):
            with pytest.raises(ValueError, match=f"^{given} is a URL without a path: name a folder, as in"):
                understood(given)
    assert remote.local_copy("file:///a/b") == Path("/a/b")
