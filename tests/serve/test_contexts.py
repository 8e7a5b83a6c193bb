"""Contexts of clients: made, read by jobs, asked, changed, expired, deleted; and what a restart leaves of them."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from serving import NAME, running, until

from landmark import Collection
from landmark.contexts import disk
from landmark.contexts.collection_manifest import read_collection
from landmark.contexts.remote import local_copy
from landmark.serve.records import Record, collection_folder

TEXT = "jim looked at the ships and keys for a long while . " * 30
NOTE = "he spoke of the calm sea 0123456789 . " * 20


@pytest.fixture
def http(served):
    with httpx.Client(base_url=f"{served.url}/v1", timeout=60) as client:
        yield client


def made(http, name, *documents, **fields):
    body = {"name": name, "documents": [{"name": n, "text": text} for n, text in documents], **fields}
    response = http.post("/contexts", json=body)
    assert response.status_code == 201, response.text
    return response.json()


def ready(http, name):
    """The context once nothing of it is left to be read."""
    assert until(lambda: http.get(f"/contexts/{name}").json()["job"] is None)
    return http.get(f"/contexts/{name}").json()


def test_a_context_is_made_read_and_asked(served, http, reader, tmp_path):
    assert made(http, "one", ("a.txt", TEXT))["status"] == "reading"
    found = ready(http, "one")
    assert (found["status"], found["writable"], found["shared"]) == ("ready", True, False)
    assert [document["name"] for document in found["documents"]] == ["a.txt"]
    assert found["bytes"] > len(TEXT)
    with Collection.create(tmp_path / "same", *reader) as collection:
        collection.add(TEXT, "a.txt")
        expected = collection.generate("jim ", max_new_tokens=10).text
    assert found["tokens"] == collection.documents[0].tokens
    answer = served.client().completions.create(model=f"{NAME}@one", prompt="jim ", max_tokens=10)
    assert answer.choices[0].text == expected
    assert any(one["id"] == found["id"] for one in http.get("/contexts").json()["data"])
    assert http.delete("/contexts/one").json()["deleted"]
    assert http.get("/contexts/one").status_code == 404


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says which files are open")
def test_files_of_a_context_are_open_from_a_question_to_the_next_change(served, http):
    def open_files(id):
        links = [Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
        return sum(f"/{id}/" in str(link.readlink()) for link in links if link.is_symlink())

    id = made(http, "open", ("a.txt", TEXT), ("b.txt", NOTE))["id"]
    ready(http, "open")
    assert open_files(id) == 0
    ask = {"model": f"{NAME}@open", "prompt": "jim ", "max_tokens": 2}
    for change in ("/contexts/open/documents/a.txt", "/contexts/open"):
        assert http.post("/completions", json=ask).status_code == 200
        assert until(lambda: 6 < open_files(id) <= 13)  # of each document, and the folder
        http.delete(change)
        assert until(lambda: open_files(id) == 0)


def test_files_are_added_to_a_context_and_the_version_before_answers_meanwhile(served, http):
    made(http, "two", ("a.txt", TEXT))
    first = ready(http, "two")
    files = [("files", ("../../etc/b.txt", NOTE.encode())), ("files", ("c\x00\u202e.txt", TEXT.encode() * 2))]
    job = http.post("/contexts/two/files", files=files)
    assert job.status_code == 202
    assert http.get("/contexts/two").json()["status"] == "ready"
    served.client().completions.create(model=f"{NAME}@two", prompt="jim ", max_tokens=2)
    second = ready(http, "two")
    assert [document["name"] for document in second["documents"]][:2] == ["a.txt", "b.txt"]
    assert second["tokens"] > first["tokens"]
    place = served.server.contexts.folder / second["id"]
    assert sorted(path.name for path in place.iterdir()) == ["collection", "record.json"]


def test_the_progress_of_a_job_comes_as_events(http):
    made(http, "three", ("a.txt", TEXT * 4))
    with http.stream("GET", "/contexts/three/jobs?stream=true") as found:
        lines = [line.removeprefix("data: ") for line in found.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    states = [json.loads(line) for line in lines[:-1]]
    assert states[-1]["status"] == "done"
    assert states[-1]["tokens_read"] == states[-1]["tokens"] > 0
    counts = [state["tokens_read"] for state in states]
    assert counts == sorted(counts)
    assert http.get("/contexts/three/jobs").json()["data"] == states[-1:]


def test_a_cancelled_job_changes_nothing(served, http):
    made(http, "four", ("a.txt", NOTE))
    before = ready(http, "four")
    job = http.post("/contexts/four/documents", json={"documents": [{"name": "long", "text": TEXT * 30}]}).json()
    assert http.delete(f"/contexts/four/jobs/{job['id']}").json()["status"] == "cancelled"
    after = ready(http, "four")
    assert (after["tokens"], after["bytes"], after["documents"]) == (
        before["tokens"],
        before["bytes"],
        before["documents"],
    )
    place = served.server.contexts.folder / after["id"]
    assert until(lambda: sorted(path.name for path in place.iterdir()) == ["collection", "record.json"])
    assert len(list((place / "collection" / "documents").iterdir())) == 1
    assert http.delete("/contexts/four/jobs/nothing").status_code == 404


def test_a_context_that_is_deleted_while_it_is_read_leaves_nothing(served, http):
    found = made(http, "five", ("long", TEXT * 30))
    assert until(lambda: (http.get("/contexts/five").json()["job"] or {}).get("tokens_read"))
    assert http.delete("/contexts/five").status_code == 200
    assert until(lambda: not (served.server.contexts.folder / found["id"]).exists())
    assert until(lambda: not served.server.engine.reading)


def test_a_context_expires(served, http):
    made(http, "six", ("a.txt", NOTE))
    ready(http, "six")
    assert http.patch("/contexts/six", json={"ttl": 1000}).json()["ttl"] == pytest.approx(1000, abs=60)
    assert http.patch("/contexts/six", json={"ttl": None}).json()["expires"] is None
    http.patch("/contexts/six", json={"ttl": 0.05})
    assert until(lambda: http.get("/contexts/six").status_code == 404)
    with pytest.raises(openai.NotFoundError):
        served.client().completions.create(model=f"{NAME}@six", prompt="jim ")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "../x"}, 400),
        ({"name": ""}, 400),
        ({"name": "a", "ttl": -1}, 400),
        ({"name": "a", "documents": [{"name": "b", "text": ""}]}, 400),
        ({"name": "a", "documents": [{"name": "b", "text": "  "}]}, 400),
        ({"name": "a", "documents": [{"name": "..", "text": "x"}]}, 400),
        ({"name": "a", "documents": [{"name": "b", "text": "x"}, {"name": "b", "text": "y"}]}, 409),
        ({"name": "a", "path": "/etc"}, 400),
    ],
)
def test_bad_contexts_are_refused_and_leave_nothing(served, http, body, status):
    before = sorted(served.server.contexts.folder.iterdir())
    response = http.post("/contexts", json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    assert sorted(served.server.contexts.folder.iterdir()) == before


def test_names_are_taken_once(http):
    made(http, "seven", ("a.txt", NOTE))
    assert http.post("/contexts", json={"name": "seven"}).status_code == 409
    ready(http, "seven")
    again = http.post("/contexts/seven/documents", json={"documents": [{"name": "a.txt", "text": TEXT}]})
    assert again.status_code == 409
    assert "a.txt" in again.json()["error"]["message"]
    assert str(os.sep + "tmp") not in again.text


def test_what_is_no_text_is_refused(http):
    made(http, "eight")
    assert http.get("/contexts/eight").json()["status"] == "empty"
    response = http.post("/contexts/eight/files", files=[("files", ("a.bin", b"\xff\xfe\x00"))])
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    response = http.post("/contexts/eight/files", files=[("files", ("a.pdf", b"%PDF-1.7\n"))])
    assert (response.status_code, "a.pdf is a PDF" in response.json()["error"]["message"]) == (400, True)


def test_an_unknown_route_is_answered_with_the_base_url(http):
    response = http.get("/nothing")
    assert (response.status_code, "ends with /v1" in response.json()["error"]["message"]) == (404, True)


def names(http, context):
    return [document["name"] for document in http.get(f"/contexts/{context}").json()["documents"]]


def document_folders(served, context_id):
    return list((served.server.contexts.folder / context_id / "collection" / "documents").iterdir())


def test_single_documents_are_replaced_and_removed(served, http):
    made(http, "nine", ("a.txt", NOTE), ("b.txt", TEXT))
    found = ready(http, "nine")
    both = found["bytes"]
    assert http.put("/contexts/nine/documents/a.txt", json={"text": NOTE + "changed"}).status_code == 202
    assert http.put("/contexts/nine/documents/c.txt", json={"text": "a new text . " * 9}).status_code == 202
    ready(http, "nine")
    assert names(http, "nine") == ["a.txt", "b.txt", "c.txt"]
    removed = http.delete("/contexts/nine/documents/b.txt")
    assert removed.json() == {"id": "b.txt", "object": "context.document.deleted", "deleted": True}
    left = http.get("/contexts/nine").json()
    assert [document["name"] for document in left["documents"]] == ["a.txt", "c.txt"]
    assert left["bytes"] < both
    assert len(document_folders(served, found["id"])) == 2
    answer = served.client().completions.create(model=f"{NAME}@nine", prompt="jim ", max_tokens=4)
    sources = answer.choices[0].landmark["sources"]
    assert {source["document"] for source in sources} <= {"a.txt", "c.txt"}
    assert http.delete("/contexts/nine/documents/b.txt").json()["error"]["code"] == "document_not_found"
    long = "x" * 300  # cut alike by both
    assert http.put(f"/contexts/nine/documents/{long}", json={"text": "a ship . " * 9}).status_code == 202
    ready(http, "nine")
    assert http.delete(f"/contexts/nine/documents/{long}").status_code == 200
    for name in ("a.txt", "c.txt"):
        assert http.delete(f"/contexts/nine/documents/{name}").status_code == 200
    assert http.get("/contexts/nine").json()["status"] == "empty"
    assert document_folders(served, found["id"]) == []


def test_equal_texts_and_names_are_decided_before_anything_is_read(served, http):
    made(http, "ten", ("a.txt", NOTE))
    ready(http, "ten")
    same = http.post("/contexts/ten/documents", json={"documents": [{"name": "copy.txt", "text": NOTE}]}).json()
    assert (same["status"], same["documents"], same["tokens"]) == ("done", [], 0)
    assert http.put("/contexts/ten/documents/a.txt", json={"text": NOTE}).json()["status"] == "done"
    refused = http.post("/contexts/ten/documents", json={"documents": [{"name": "a.txt", "text": TEXT}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "document_exists")
    assert http.get("/contexts/ten/jobs").json()["data"][1:] == []
    assert names(http, "ten") == ["a.txt"]


def test_contexts_of_one_owner_share_documents(served, http):
    first = made(http, "eleven", ("a.txt", TEXT))
    alone = ready(http, "eleven")["bytes"]
    before = served.server.contexts.bytes_of("local")
    second = made(http, "twelve", ("other name.txt", TEXT))
    ready(http, "twelve")
    assert served.server.contexts.bytes_of("local") - before < alone / 2
    (one,), (other,) = document_folders(served, first["id"]), document_folders(served, second["id"])
    mine, theirs = (next((folder / "segments").glob("*.blocks")) for folder in (one, other))
    assert mine.samefile(theirs)
    assert http.delete("/contexts/eleven").status_code == 200
    answer = served.client().completions.create(model=f"{NAME}@twelve", prompt="jim ", max_tokens=4)
    assert answer.choices[0].landmark["sources"][0]["document"] == "other name.txt"


def test_a_document_is_removed_while_another_is_read(served, http):
    made(http, "thirteen", ("a.txt", NOTE), ("b.txt", TEXT))
    found = ready(http, "thirteen")
    job = http.post("/contexts/thirteen/documents", json={"documents": [{"name": "long", "text": TEXT * 10}]}).json()
    assert until(lambda: (http.get("/contexts/thirteen").json()["job"] or {}).get("tokens_read"))
    for again in (
        http.put("/contexts/thirteen/documents/long", json={"text": NOTE}),
        http.delete("/contexts/thirteen/documents/long"),
    ):
        assert (again.status_code, again.json()["error"]["code"]) == (409, "document_exists")
    assert http.delete("/contexts/thirteen/documents/a.txt").status_code == 200
    assert names(http, "thirteen") == ["b.txt"]
    ready(http, "thirteen")
    assert names(http, "thirteen") == ["b.txt", "long"]
    assert http.get("/contexts/thirteen/jobs").json()["data"][-1]["id"] == job["id"]
    assert len(document_folders(served, found["id"])) == 2


def test_a_disk_that_takes_no_job_keeps_none(served, http, monkeypatch):
    made(http, "fourteen")
    record = next(one for one in served.server.contexts.records.values() if one.name == "fourteen")

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    body = {"documents": [{"name": "a.txt", "text": NOTE}]}
    with monkeypatch.context() as patched:
        patched.setattr(record, "save", full, raising=False)
        refused = http.post("/contexts/fourteen/documents", json=body)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
    assert "No space left" in refused.json()["error"]["message"]
    assert record.jobs == []
    assert [path.name for path in served.server.contexts.place(record).iterdir()] == ["record.json"]
    assert http.post("/contexts/fourteen/documents", json=body).status_code == 202
    ready(http, "fourteen")
    assert names(http, "fourteen") == ["a.txt"]


def test_a_context_is_never_there_without_the_job_that_came_with_it(http, monkeypatch):
    """Whenever the server is killed: a folder without a record is removed at the next start."""
    jobs, save = [], Record.save

    def seen(record, folder):
        jobs.append(len(record.jobs))
        save(record, folder)

    monkeypatch.setattr(Record, "save", seen)
    made(http, "in-one-step", ("a.txt", NOTE))
    ready(http, "in-one-step")
    assert min(jobs) == 1
    assert names(http, "in-one-step") == ["a.txt"]


def test_no_power_cut_takes_a_new_context_back_or_brings_a_deleted_one(served, http, monkeypatch):
    """What a client was told is in the names of folders, too: these are on the device before it is told."""
    synced, usual = [], disk.sync_folder

    def sync_folder(folder):
        synced.append((folder.path, folder.names()))
        usual(folder)

    monkeypatch.setattr(disk, "sync_folder", sync_folder)
    place = served.server.contexts.folder / made(http, "durable")["id"]
    paths = [path for path, _ in synced]
    assert paths.index(place.parent) < paths.index(place)
    assert place.name in dict(synced)[place.parent]
    synced.clear()
    http.delete("/contexts/durable")
    assert [names for path, names in synced if path == place] == [[]]


def test_expired_contexts_are_deleted_when_the_disk_works_again(served, http, monkeypatch):
    made(http, "fifteen")
    contexts, usual, calls = served.server.contexts, served.server.contexts.delete, []

    def fails_once(record):
        calls.append(record.name)
        if len(calls) < 3:
            raise (OSError(errno.EIO, "Input/output error") if len(calls) < 2 else RuntimeError("a defect"))
        usual(record)

    monkeypatch.setattr("landmark.serve.app._SWEEP", 0.05)
    monkeypatch.setattr(contexts, "delete", fails_once)
    http.patch("/contexts/fifteen", json={"ttl": 0.01})
    assert until(lambda: not any(record.name == "fifteen" for record in contexts.records.values()))


def test_the_jobs_of_a_user_are_bounded(served, http, monkeypatch):
    monkeypatch.setattr("landmark.serve.contexts._MOST_JOBS", 2)
    made(http, "sixteen", ("long", TEXT * 20))
    bodies = [{"documents": [{"name": f"{number}", "text": f"{number} {NOTE}"}]} for number in range(2)]
    first, second = (http.post("/contexts/sixteen/documents", json=body) for body in bodies)
    assert (first.status_code, second.status_code) == (202, 429)
    assert "2 of your jobs" in second.json()["error"]["message"]
    assert second.headers["retry-after"]
    assert http.delete("/contexts/sixteen").status_code == 200


def test_a_given_context_cannot_be_changed(http):
    for response in (
        http.delete("/contexts/library"),
        http.patch("/contexts/library", json={"ttl": 1}),
        http.post("/contexts/library/documents", json={"documents": [{"name": "a", "text": "b"}]}),
    ):
        assert response.status_code == 403
    found = http.get("/contexts/library").json()
    assert (found["status"], found["writable"], found["shared"]) == ("ready", False, True)


def test_a_collection_is_served_as_a_context_is(reader, tmp_path):
    with Collection.create(tmp_path / "library", *reader) as collection:
        collection.add(TEXT, "a")
        collection.add(NOTE, "b")
        expected = collection.generate("jim ", max_new_tokens=5).text
    with running(*reader, given={"library": tmp_path / "library"}) as one:
        answer = one.client().completions.create(model=f"{NAME}@library", prompt="jim ", max_tokens=5)
        found = httpx.get(f"{one.url}/v1/contexts/library").json()
    assert answer.choices[0].text == expected
    assert [document["name"] for document in found["documents"]] == ["a", "b"]
    assert found["bytes"] > 0


def test_a_damaged_copy_of_a_url_is_fetched_again(reader, tmp_path, monkeypatch):
    pytest.importorskip("fsspec", reason="the extra remote")
    monkeypatch.setenv("LANDMARK_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}"
    with Collection.create(url, *reader) as collection:
        collection.add(TEXT, "a")
        expected = collection.generate("jim ", max_new_tokens=5).text
    with running(*reader, given={"library": local_copy(url)}) as one:
        (blocks,) = local_copy(url).rglob("*.blocks")
        blocks.write_bytes(bytes(byte ^ 1 for byte in blocks.read_bytes()))
        with pytest.raises(openai.InternalServerError, match="the context is damaged"):
            one.client().completions.create(model=f"{NAME}@library", prompt="jim ", max_tokens=5)
        answer = one.client().completions.create(model=f"{NAME}@library", prompt="jim ", max_tokens=5)
    assert answer.choices[0].text == expected


def test_damage_that_reading_again_finds_is_mended_too(reader, tmp_path, monkeypatch, known_heads):
    """The blocks to read again are looked up before an answer begins."""
    pytest.importorskip("fsspec", reason="the extra remote")
    monkeypatch.setenv("LANDMARK_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}"
    with Collection.create(url, *reader) as collection:
        collection.add(TEXT, "a")
    with running(*reader, given={"library": local_copy(url)}) as one:
        (blocks,) = local_copy(url).rglob("*.blocks")
        blocks.write_bytes(bytes(byte ^ 1 for byte in blocks.read_bytes()))
        asked = {
            "model": f"{NAME}@library",
            "messages": [{"role": "user", "content": "where is jim ?"}],
            "max_tokens": 3,
        }
        codes = [httpx.post(f"{one.url}/v1/chat/completions", json=asked).status_code for _ in range(2)]
    assert codes == [500, 200]


def test_without_a_folder_clients_make_no_contexts(reader, library):
    with running(*reader, given={"library": library}) as one:
        assert httpx.post(f"{one.url}/v1/contexts", json={"name": "a"}).status_code == 403


# Restarts.


def started(model, data, *, log):
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "landmark.cli.main", "serve", "--model", str(model), "--data", str(data)]
    with log.open("w") as errors:
        process = subprocess.Popen([*command, "--name", NAME, "--port", "0", "--threads", "1"], stderr=errors)
    assert until(lambda: "startup complete" in log.read_text() or process.poll() is not None, 180), log.read_text()
    line = next(line for line in log.read_text().splitlines() if line.startswith("serving"))
    return process, line.split()[3].rstrip("/")


def test_a_job_survives_the_death_of_the_process(reader, tmp_path):
    model, tokenizer = reader
    data, log = tmp_path / "data", tmp_path / "log"
    process, url = started(model.name_or_path, data, log=log)
    try:
        with httpx.Client(base_url=f"{url}/v1", timeout=60) as http:
            made(http, "kept", ("a.txt", NOTE))
            ready(http, "kept")
            http.post("/contexts/kept/documents", json={"documents": [{"name": "long", "text": TEXT * 16}]})
            assert until(lambda: (http.get("/contexts/kept").json()["job"] or {}).get("tokens_read"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with running(model, tokenizer, data=data) as one, httpx.Client(base_url=f"{one.url}/v1", timeout=60) as http:
        assert http.get("/contexts/kept").json()["status"] == "ready"
        found = ready(http, "kept")
        assert [document["name"] for document in found["documents"]] == ["a.txt", "long"]
        answer = one.client().completions.create(model=f"{NAME}@kept", prompt="jim ", max_tokens=10)
    with Collection.create(tmp_path / "same", model, tokenizer) as collection:
        collection.add(NOTE, "a.txt")
        collection.add(TEXT * 16, "long")
        assert answer.choices[0].text == collection.generate("jim ", max_new_tokens=10).text


def test_a_server_that_is_told_to_stop_pauses_its_job_and_ends(reader, tmp_path):
    model, tokenizer = reader
    data = tmp_path / "data"
    with running(model, tokenizer, data=data) as one, httpx.Client(base_url=f"{one.url}/v1", timeout=60) as http:
        made(http, "long", ("long", TEXT * 30))
        assert until(lambda: (http.get("/contexts/long").json()["job"] or {}).get("tokens_read"))
    with running(model, tokenizer, data=data) as one, httpx.Client(base_url=f"{one.url}/v1", timeout=60) as http:
        assert http.get("/contexts/long").json()["status"] == "reading"
        assert http.delete("/contexts/long").status_code == 200
        assert until(lambda: not list((data / "contexts").glob("ctx-*")))


def test_int8_blocks_are_for_new_contexts_and_others_stay_what_they_are(reader, library, tmp_path):
    data = tmp_path / "data"

    def kept(one, http, name):
        folder = one.server.contexts.folder / http.get(f"/contexts/{name}").json()["id"]
        return read_collection(collection_folder(folder)).layout.kv_dtype

    with running(*reader, data=data) as one, httpx.Client(base_url=f"{one.url}/v1", timeout=60) as http:
        made(http, "earlier", ("a.txt", NOTE))
        ready(http, "earlier")
    with (
        running(*reader, data=data, given={"library": library}, kv_dtype="int8") as one,
        httpx.Client(base_url=f"{one.url}/v1", timeout=60) as http,
    ):
        made(http, "later", ("a.txt", NOTE))
        assert http.post(
            "/contexts/earlier/documents", json={"documents": [{"name": "b.txt", "text": TEXT}]}
        ).is_success
        for name in ("earlier", "later"):
            assert ready(http, name)["status"] == "ready"
        assert names(http, "earlier") == ["a.txt", "b.txt"]
        assert [kept(one, http, name) for name in ("earlier", "later")] == [None, "int8"]
        for name in ("earlier", "later", "library"):
            answer = one.client().completions.create(model=f"{NAME}@{name}", prompt="jim ", max_tokens=2)
            assert answer.choices[0].text


def test_folders_of_others_are_left_alone(reader, tmp_path):
    from landmark.serve.records import Job, Record

    folder = tmp_path / "data" / "contexts"
    mine = folder / "library"
    mine.mkdir(parents=True)
    (mine / "keep.txt").write_text("mine")
    record = Record("ctx-0123456789abcdef", "old", "local", jobs=[Job("job-1", ["a"], status="done")])
    (folder / record.id).mkdir(parents=True)
    (folder / record.id / "texts-job-0.json").write_text("{}")
    record.save(folder / record.id)
    (folder / "ctx-00000000000000ff").mkdir()
    with running(*reader, data=tmp_path / "data") as one:
        assert [found.name for found in one.server.contexts.records.values()] == ["old"]
    assert (mine / "keep.txt").read_text() == "mine"
    assert not (folder / "ctx-00000000000000ff").exists()
    assert [path.name for path in (folder / record.id).iterdir()] == ["record.json"]


def test_one_server_has_a_folder(reader, tmp_path):
    with (
        running(*reader, data=tmp_path),
        pytest.raises(ValueError, match="another"),
        running(*reader, data=tmp_path),
    ):
        pass
