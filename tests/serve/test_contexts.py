"""Contexts of clients: made, read by jobs, asked, changed, expired, deleted; and what a restart leaves of them."""

import json
import os
import signal
import subprocess
import sys

import httpx
import openai
import pytest
from serving import NAME, running, until

from landmark import Collection, Context

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
    with Context.create(tmp_path / "same", *reader) as context:
        context.append(TEXT, "a.txt")
    assert found["tokens"] == context.tokens
    answer = served.client().completions.create(model=f"{NAME}@one", prompt="jim ", max_tokens=10)
    assert answer.choices[0].text == context.generate("jim ", max_new_tokens=10).text
    assert any(one["id"] == found["id"] for one in http.get("/contexts").json()["data"])
    assert http.delete("/contexts/one").json()["deleted"]
    assert http.get("/contexts/one").status_code == 404


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
    assert sorted(path.name for path in place.iterdir()) == ["record.json", "version-2"]


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
    assert until(lambda: sorted(path.name for path in place.iterdir()) == ["record.json", "version-1"])
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
    with Context.create(tmp_path / "same", model, tokenizer) as context:
        context.append(NOTE, "a.txt")
        context.append(TEXT * 16, "long")
    assert answer.choices[0].text == context.generate("jim ", max_new_tokens=10).text


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


def test_folders_of_others_are_left_alone(reader, tmp_path):
    from landmark.serve.records import Job, Record

    folder = tmp_path / "data" / "contexts"
    mine = folder / "library"
    mine.mkdir(parents=True)
    (mine / "keep.txt").write_text("mine")
    record = Record("ctx-0123456789abcdef", "old", "local", version=0, jobs=[Job("job-1", ["a"], 1, "done")])
    (folder / record.id / "version-7").mkdir(parents=True)
    record.save(folder / record.id)
    (folder / "ctx-00000000000000ff").mkdir()
    with running(*reader, data=tmp_path / "data") as one:
        assert [found.name for found in one.server.contexts.records.values()] == ["old"]
    assert (mine / "keep.txt").read_text() == "mine"
    assert not (folder / "ctx-00000000000000ff").exists()


def test_one_server_has_a_folder(reader, tmp_path):
    with (
        running(*reader, data=tmp_path),
        pytest.raises(ValueError, match="another"),
        running(*reader, data=tmp_path),
    ):
        pass
