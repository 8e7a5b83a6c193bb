"""The end of a training's processes: threads that carry messages have finished before the interpreter ends."""

import hashlib
import sys
import threading
from pathlib import Path

import pytest

from landmark.training import processes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_thread_that_is_at_work_is_waited_for():
    started, done = threading.Event(), []

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(processes.GLOO_THREADS)
        started.set()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # without Python's lock, as such threads work
        done.append(True)

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    processes.wait_for_gloo()
    assert done
    worker.join()


def test_without_such_threads_there_is_nothing_to_wait_for(monkeypatch):
    monkeypatch.setattr(processes, "GLOO_THREADS", "nobody")
    monkeypatch.setattr(processes, "TIMEOUT", float("inf"))
    processes.wait_for_gloo()


def test_only_a_training_that_failed_ends_in_the_middle(monkeypatch):
    registered = []
    monkeypatch.setattr(processes.atexit, "register", registered.append)
    monkeypatch.setattr(processes.atexit, "unregister", lambda f: f in registered and registered.remove(f))
    for _ in range(2):
        processes.leave_group_at_exit()
        assert len(registered) == 1
    processes.stay_in_group_at_exit()
    assert registered == []
