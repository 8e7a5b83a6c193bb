"""Replicas behind Ray Serve: the command itself, with two replicas of the tiny server, one of which is killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import psutil
import pytest
from serving import free_port, until

pytest.importorskip("ray.serve", reason="the extra ray")

from landmark import Context
from landmark.cli import main as cli
from landmark.serve.ray_serve import Replicas

PROMPT = "keys and ships "


@pytest.fixture
def served(reader, library, tmp_path):
    """The URL of a server on a cluster of its own, which ends with the command."""
    port = free_port()
    command = [sys.executable, "-m", "landmark.cli.main", "serve", library, "--model", reader[0].name_or_path]
    command += ["--name", "tiny", "--ray", "local", "--replicas", "2", "--port", port, "--threads", "1"]
    settings = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen([str(part) for part in command], env=settings, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}", running
        finally:
            below = psutil.Process(running.pid).children(recursive=True)
            running.send_signal(signal.SIGTERM)
            code = running.wait(180)
    assert code == 0, (tmp_path / "log").read_text()
    assert psutil.wait_procs(below, 60)[1] == []  # nothing of the cluster is left


class Client:
    """Asks the server at a URL, as one session or as none."""

    def __init__(self, url, session=None):
        headers = {} if session is None else {"X-Session-Id": session}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False)

    def answer(self, tokens=8):
        got = self._http.post("/v1/completions", json=asked(tokens))
        got.raise_for_status()
        return got.json()["choices"][0]["text"]

    def answer_or_none(self):
        try:
            return self.answer()
        except httpx.HTTPError:
            time.sleep(0.5)
            return None

    def lines(self, tokens):
        """The events of a streamed answer."""
        with self._http.stream("POST", "/v1/completions", json={**asked(tokens), "stream": True}) as got:
            got.raise_for_status()
            yield from filter(None, got.iter_lines())

    def completions(self):
        """How many the replica has answered that this session goes to."""
        figures = self._http.get("/metrics").text.splitlines()
        counted = [line for line in figures if "landmark_requests_total" in line and "/v1/completions" in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counted)

    def is_up(self):
        with suppress(httpx.HTTPError):
            return self._http.get("/healthz").status_code == 200
        return False


def asked(tokens):
    return {"model": "tiny@library", "prompt": PROMPT, "max_tokens": tokens}


def workers(running):
    """The replicas' processes, below that of the command."""
    below = psutil.Process(running.pid).children(recursive=True)
    return {process.pid for process in below if "ServeReplica" in " ".join(process.cmdline())}


def test_replicas_answer_alike_and_one_that_is_killed_comes_back(served, reader, library):
    url, running = served
    client, session = Client(url), Client(url, "library")
    assert until(lambda: running.poll() is not None or client.is_up(), 300)
    assert until(lambda: len(workers(running)) == 2)
    expected = Context.open(library, *reader).generate(PROMPT, max_new_tokens=8).text
    assert [client.answer() for _ in range(3)] == [expected] * 3
    before = session.completions()
    assert [session.answer() for _ in range(4)] == [expected] * 4
    assert session.completions() == before + 4  # all went to one

    killed = workers(running)
    stream = session.lines(2000)
    assert next(stream).startswith("data: ")
    for process in killed:
        os.kill(process, signal.SIGKILL)
    with suppress(httpx.HTTPError):
        assert "data: [DONE]" not in list(stream)
    assert until(lambda: client.answer_or_none() == expected, 300)
    assert not workers(running) & killed


@pytest.mark.parametrize("text", ["", "0", "two", "3:2", "1:2:3", "-1"])
def test_numbers_of_replicas(text):
    with pytest.raises(ValueError, match="give a number, such as 4, or the least and the most"):
        Replicas.parse(text)
    assert (Replicas.parse("4"), Replicas.parse("2:8")) == (Replicas(4, 4), Replicas(2, 8))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ray", "127.0.0.1:9"], "no cluster answers there"),
        (["--ray", "local", "--data", "{tmp}"], "--data is for one server"),
        (["--ray", "local", "--replicas", "none"], "give a number, such as 4"),
    ],
)
def test_mistakes_are_one_line(library, tmp_path, arguments, said, capsys):
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert cli.main(["serve", str(library), "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
