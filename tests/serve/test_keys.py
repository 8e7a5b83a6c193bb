"""Keys: who may come in, what each may see and use, and where a server without them listens."""

import errno
import shlex
import shutil
import ssl
import stat
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from serving import NAME, running, until
from tiny_reader import save_chat

import landmark
from landmark import Context
from landmark.assets import model_path
from landmark.cli.main import main
from landmark.hf.tokenizer import load_tokenizer
from landmark.serve.errors import Refusal
from landmark.serve.keys import Caller, Keys, Quota, Usage, new_key
from landmark.serve.metrics import Metrics
from landmark.serve.run import Address, is_loopback, listen

TEXT = "jim looked at the ships and keys for a long while . " * 20


@pytest.fixture(scope="module")
def guarded(reader, library, tmp_path_factory):
    """A server with keys for three, and clients of them by name."""
    folder = tmp_path_factory.mktemp("guarded")
    quotas = {"anna": Quota(), "bert": Quota(), "poor": Quota(contexts=1, bytes=300_000, tokens=600)}
    keys = {name: new_key(folder / "keys.json", name, quota) for name, quota in quotas.items()}
    known = Keys.load(folder / "keys.json")
    with running(*reader, data=folder / "data", given={"library": library}, keys=known) as one:
        clients = {
            name: httpx.Client(base_url=f"{one.url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=120)
            for name, key in keys.items()
        }
        yield one, clients
        for client in clients.values():
            client.close()


def test_nobody_comes_in_without_a_key(guarded):
    one, _ = guarded
    for headers in (
        {},
        {"Authorization": "Bearer lm-wrong"},
        {"Authorization": "Basic x"},
        {"Authorization": "Bearer"},
    ):
        for path in ("/v1/models", "/v1/contexts", "/v1/contexts/library", "/metrics"):
            response = httpx.get(one.url + path, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        body = {"model": f"{NAME}@library", "prompt": "jim "}
        assert httpx.post(f"{one.url}/v1/completions", json=body, headers=headers).status_code == 401
    assert httpx.get(f"{one.url}/healthz").status_code == 200
    assert httpx.get(f"{one.url}/").status_code == 200


def test_the_file_of_keys_has_no_key(tmp_path):
    key = new_key(tmp_path / "keys.json", "anna", Quota(1, 2, 3))
    kept = (tmp_path / "keys.json").read_text()
    assert key not in kept
    assert key.removeprefix("lm-") not in kept
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert Keys.load(tmp_path / "keys.json").caller(key) == Caller("anna", Quota(1, 2, 3))
    with pytest.raises(ValueError, match="anna"):
        new_key(tmp_path / "keys.json", "anna", Quota())


def test_a_context_of_another_is_as_if_it_were_none(guarded):
    _, clients = guarded
    anna, bert = clients["anna"], clients["bert"]
    documents = [{"name": "a", "text": TEXT}]
    mine = anna.post("/contexts", json={"name": "mine", "documents": documents}).json()
    assert until(lambda: anna.get("/contexts/mine").json()["job"] is None)
    for theirs, never in ((mine["id"], "ctx-0000000000000000"), ("mine", "nothing")):
        requests = [
            ("GET", "/contexts/{}", None),
            ("DELETE", "/contexts/{}", None),
            ("PATCH", "/contexts/{}", {"ttl": 1}),
            ("POST", "/contexts/{}/documents", {"documents": documents}),
            ("PUT", "/contexts/{}/documents/a", {"text": TEXT}),
            ("DELETE", "/contexts/{}/documents/a", None),
            ("GET", "/contexts/{}/jobs", None),
            ("GET", "/contexts/{}/jobs?stream=true", None),
            ("DELETE", "/contexts/{}/jobs/job-0", None),
        ]
        for method, path, body in requests:
            a, b = (bert.request(method, path.format(name), json=body) for name in (theirs, never))
            assert (a.status_code, a.content) == (b.status_code, b.content) == (404, a.content), path
        asked = {"model": f"{NAME}@{theirs}", "prompt": "jim "}
        assert bert.post("/completions", json=asked).status_code == 404
        asked = {"model": NAME, "prompt": "jim ", "context": theirs}
        assert bert.post("/completions", json=asked).status_code == 404
        said = bert.post("/completions", json=asked).json()["error"]["message"]
        assert said == "there is no such context: you may name library"
    assert "mine" not in bert.get("/contexts").text + bert.get("/models").text
    said = bert.get("/models/gpt-4").json()["error"]["message"]
    assert said == f"there is no such model: you may name {NAME}, {NAME}@library"
    assert bert.post("/contexts", json={"name": "mine"}).status_code == 201  # a name of anna's tells nothing
    assert bert.delete("/contexts/mine").status_code == 200
    assert anna.get("/contexts/mine").json()["id"] == mine["id"]


def test_a_shared_context_is_asked_by_all_and_changed_by_one(guarded):
    _, clients = guarded
    anna, bert = clients["anna"], clients["bert"]
    body = {"name": "ours", "shared": True, "documents": [{"name": "a", "text": TEXT}]}
    assert anna.post("/contexts", json=body).status_code == 201
    assert until(lambda: anna.get("/contexts/ours").json()["job"] is None)
    assert (
        bert.post("/completions", json={"model": f"{NAME}@ours", "prompt": "jim ", "max_tokens": 2}).status_code == 200
    )
    assert bert.get("/contexts/ours").json()["writable"] is False
    more = {"documents": [{"name": "b", "text": TEXT * 9}]}
    assert anna.post("/contexts/ours/documents", json=more).status_code == 202
    assert anna.get("/contexts/ours").json()["job"] is not None
    assert bert.get("/contexts/ours").json()["job"] is None
    assert bert.get("/contexts/ours/jobs").status_code == 403
    assert bert.delete("/contexts/ours/documents/a").status_code == 403
    assert bert.put("/contexts/ours/documents/a", json={"text": "x"}).status_code == 403
    assert bert.delete("/contexts/ours").status_code == 403
    assert bert.post("/contexts", json={"name": "ours", "shared": True}).status_code == 409
    assert anna.delete("/contexts/ours").status_code == 200


def test_quotas_end_what_a_key_may_use(guarded):
    _, clients = guarded
    poor = clients["poor"]
    assert poor.post("/contexts", json={"name": "one"}).status_code == 201
    refused = poor.post("/contexts", json={"name": "two"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "insufficient_quota")
    big = [{"name": "big", "text": TEXT * 10}]
    job = poor.post("/contexts/one/documents", json={"documents": big}).json()
    assert job["status"] == "queued"
    assert until(lambda: poor.get("/contexts/one").json()["job"] is None)
    (ended,) = poor.get("/contexts/one/jobs").json()["data"]
    assert ended["status"] == "failed"
    assert "quota" in ended["error"]
    assert poor.get("/contexts/one").json()["bytes"] == 0
    asked = {"model": f"{NAME}@library", "prompt": "jim ", "max_tokens": 2}
    assert poor.post("/completions", json=asked).json()["error"]["code"] == "quota"


def test_tokens_of_yesterday_do_not_count(tmp_path, monkeypatch):
    caller, path = Caller("anna", Quota(tokens=10)), tmp_path / "usage.json"
    usage = Usage(path)
    usage.add("anna", 10)
    with pytest.raises(Refusal):
        usage.check(caller)
    usage.save()
    with pytest.raises(Refusal):
        Usage(path).check(caller)
    monkeypatch.setattr("landmark.serve.keys._today", lambda: "2000-01-01")
    usage.check(caller)
    Usage(path).check(caller)


def test_a_disk_that_takes_no_more_ends_no_answer(reader, library, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    with running(*reader, data=tmp_path / "data", given={"library": library}) as one:
        asked = {"model": f"{NAME}@library", "prompt": "jim ", "max_tokens": 2}
        with monkeypatch.context() as patched:
            patched.setattr("landmark.serve.keys._SECONDS", 0.0)
            patched.setattr("landmark.serve.keys.write_json", full)
            answers = [httpx.post(f"{one.url}/v1/completions", json=asked, timeout=20) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200]
        assert httpx.get(f"{one.url}/healthz").status_code == 200


def test_a_defect_is_counted_as_one(guarded, monkeypatch):
    one, clients = guarded

    def fails(caller):
        raise RuntimeError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(one.server.contexts, "visible", fails)
        response = clients["anna"].get("/contexts")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-content-type-options"] == "nosniff"
    figures = clients["anna"].get(f"{one.url}/metrics").text
    assert 'landmark_requests_total{route="/v1/contexts",status="500"} 1.0' in figures


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Host": ""}, {"Origin": "http://evil.example"}])
def test_pages_of_other_sites_reach_nothing(guarded, headers):
    one, _ = guarded
    assert httpx.get(f"{one.url}/healthz", headers=headers).status_code == 403
    assert httpx.get(f"{one.url}/healthz", headers={"Origin": one.url}).status_code == 200


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True)])
def test_loopback(host, expected):
    assert is_loopback(host) is expected
    Address(host).check(has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_other_addresses_need_keys(host):
    assert not is_loopback(host)
    with pytest.raises(ValueError, match="no keys"):
        Address(host).check(has_keys=False)
    Address(host).check(has_keys=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "no keys"),
        (["--new-key", "anna"], "--keys"),
        (["--certificate", "missing.pem"], "--private-key"),
        (["--port", "70000"], "port"),
        (["--adapter", "a"], "--model"),
        (["nothing"], "nothing"),
        (["--max-upload", "much"], "max_upload"),
        (["--data", "served", "--quota-bytes", "1GB"], "--new-key"),
        (["--name", "a@b"], "without @"),
        (["--model", str(model_path()), "--memory", "1MB"], "--host-budget"),
        (["--waiting", "0"], "waiting"),
        (["--replicas", "2"], "--ray"),
        (["--threads", "5000"], "threads is 5000"),
        (["--certificate", "text.pem", "--private-key", "text.pem"], "give PEM files that belong together"),
        (["--new-key", "anna", "--keys", "text.json"], "text.json is no file of keys"),
        (["--new-key", "anna", "--keys", "half.json"], "half.json is no file of keys"),
    ],
)
def test_wrong_use_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.pem").write_text("no certificate")
    Path("text.json").write_text("{}")
    Path("half.json").write_text('{"keys": [{"name": "otto"}]}')
    try:
        code = main(["serve", "--port", "0", *arguments])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert "Traceback" not in error


def test_contexts_of_two_models_are_refused_before_one_is_loaded(reader, library, tmp_path, capsys, monkeypatch):
    other = save_chat(tmp_path)
    model = landmark.from_pretrained(other)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] += 1
    with Context.create(tmp_path / "theirs", model, load_tokenizer(other, model)) as context:
        context.append(TEXT, "a")
    monkeypatch.setattr("landmark.hf.model_files.from_pretrained", None)  # nothing is loaded
    assert main(["serve", str(library), str(tmp_path / "theirs"), "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert "theirs was read with other" in error
    assert "a server of its own" in error
    assert main(["serve", str(library), str(tmp_path / "missing"), "--port", "0"]) == 2
    assert "missing" in capsys.readouterr().err


def test_figures_are_made_beside_the_loop_of_the_server(guarded, monkeypatch):
    one, clients = guarded
    threads = []
    monkeypatch.setattr(Metrics, "text", lambda self: threads.append(threading.current_thread().name) or b"")
    clients["anna"].get(f"{one.url}/metrics")
    assert threads[0].startswith("asyncio_")


def test_what_takes_its_time_is_said_before(reader, library, capsys, monkeypatch):
    monkeypatch.setattr("landmark.serve.run.serve", lambda server, address, listening: server.stop(0))
    assert main(["serve", str(library), "--model", reader[0].name_or_path, "--port", "0"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.err.splitlines()] == ["loading", "opening", "serving"]
    assert "opening library\n" in printed.err
    assert printed.out == ""


def test_a_port_in_use_is_told_before_a_model_is_loaded(capsys):
    with listen(Address(port=0)) as taken:
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "take another port" in capsys.readouterr().err


def test_a_key_is_printed_once(tmp_path, capsys):
    file = tmp_path / "data" / "keys.json"
    arguments = [
        "serve",
        "--data",
        str(file.parent),
        "--new-key",
        "anna",
        "--quota-tokens",
        "5",
        "--quota-bytes",
        "1MB",
    ]
    assert main(arguments) == 0
    caller = Keys.load(file).caller(capsys.readouterr().out.strip())
    assert caller == Caller("anna", Quota(None, 1_000_000, 5))
    assert main(arguments) == 2


@pytest.mark.parametrize("kept", ["", '"day": DAY', '"day": DAY, "tokens": 3', '"day": DAY, "tokens": {"a": "many"}'])
def test_a_damaged_count_of_tokens_is_named(tmp_path, kept):
    path = tmp_path / "usage.json"
    path.write_text("{" + kept.replace("DAY", time.strftime('"%Y-%m-%d"', time.gmtime())) + "}")
    with pytest.raises(ValueError, match=r"usage\.json is no count of used tokens"):
        Usage(path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_with_a_certificate(reader, library, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(shlex.split(f"{command} {names}"), check=True, capture_output=True)
    with running(*reader, given={"library": library}, address=Address(certificate=certificate, private_key=key)) as one:
        url = one.url.replace("http://127.0.0.1", "https://localhost")
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{url}/healthz", verify=trusted).json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")


def test_models_are_named_by_where_they_come_from():
    from landmark.assets import model_path
    from landmark.cli.serve import _model_name

    assert _model_name(None) == _model_name(model_path()) == "landmark"
    assert _model_name(Path("runs/Mine/model")) == "mine"
    assert _model_name(Path("runs/me@home/model")) == "me-home"
    assert _model_name(Path("SmolLM2-135M-Instruct.Q4_1.gguf")) == "smollm2-135m-instruct.q4_1"
