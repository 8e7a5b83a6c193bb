"""Processes that cannot train together are refused before any work; an orderly exit of those that did."""

import hashlib
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from landmark.training import processes
from landmark.training.plan import plan_of
from landmark.training.processes import check_processes
from landmark.training.run import train


def with_stage(plan, **changes):
    """`plan` with another last stage."""
    *before, last = plan.recipe.stages
    return replace(plan, recipe=replace(plan.recipe, stages=(*before, replace(last, **changes))))


def test_a_single_process_shares_with_nobody(options):
    check_processes(plan_of(options()), 1)
    for way in ("ddp", "fsdp", "sequence"):
        with pytest.raises(ValueError, match=f"--parallel {way} is for several processes.*torchrun"):
            check_processes(plan_of(options(parallel=way)), 1)
    with pytest.raises(ValueError, match="a single one: leave it out"):
        train(options(parallel="fsdp"))


@pytest.mark.parametrize("way", [None, "ddp", "fsdp"])
def test_shares_of_micro_batches_must_be_even(options, way):
    plan = plan_of(options(parallel=way))
    check_processes(plan, 2)
    with pytest.raises(ValueError, match="3 processes cannot share 2 micro-batches"):
        check_processes(plan, 3)


def test_shares_of_heads_must_be_even(options):
    plan = plan_of(options(parallel="sequence"))
    with pytest.raises(ValueError, match="2 processes cannot share 2 query heads and 1 key-value heads evenly"):
        check_processes(plan, 2)
    config = plan.config | {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}
    plan = replace(plan, config=config)
    check_processes(plan, 3)
    with pytest.raises(ValueError, match="2 processes cannot share 6 query heads and 3 key-value heads evenly"):
        check_processes(plan, 2)


def test_slices_are_of_windows_of_landmark_attention(options):
    plan = plan_of(options(parallel="sequence"))
    plan = replace(plan, config=plan.config | {"num_key_value_heads": 2})
    check_processes(plan, 2)
    check_processes(with_stage(plan, jumps=3, gates=False), 2)
    for changes, said in (
        ({"attention": "full"}, "a stage with attention 'full'"),
        ({"attention": "landmark_recurrent", "segments": 2}, "a stage with attention 'landmark_recurrent'"),
        ({"block_dropout": 0.5}, "block_dropout 0.5 is drawn for all of them"),
        ({"window_positions": 1}, "2 processes cannot share a window of 1 positions"),
    ):
        with pytest.raises(ValueError, match=said):
            check_processes(with_stage(plan, **changes), 2)


def test_a_model_that_is_not_there_has_no_heads(options, tmp_path):
    plan = plan_of(options(parallel="sequence", config=None, model=str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"no model at .*none: there is no such folder"):
        check_processes(plan, 2)
    plan = plan_of(options(parallel="sequence"))
    with pytest.raises(ValueError, match="the configuration cannot be used"):
        check_processes(replace(plan, config=plan.config | {"num_attention_heads": 3}), 3)


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
