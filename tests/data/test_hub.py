"""What cannot be had from the hub is told at once: no test here needs a network, or waits for one."""

import socket
import time

import pytest

from landmark.data import hub
from landmark.data.text import read_documents


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def answer_at(monkeypatch, port: int) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")


def test_a_hub_that_refuses_is_told_at_once(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        answer_at(monkeypatch, closed.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"does not give some/text \(.*refused\).*HF_HUB_OFFLINE=1"):
            hub.check_reachable("some/text", "dataset")
    assert time.monotonic() - start < 5, "the hub's library tries six times, for 24 seconds"


def test_a_hub_that_is_silent_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer_at(monkeypatch, silent.getsockname()[1])
        with pytest.raises(ValueError, match="timed out"):
            hub.check_reachable("some/model", "model")


def test_folders_and_offline_mode_ask_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", None)
    hub.check_reachable(str(tmp_path), "model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.check_reachable("some/text", "dataset")


def test_a_model_that_was_downloaded_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", None)
    folder = tmp_path / "models--some--model"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "snapshots" / "0" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    hub.check_model("some/model", "config.json", {"cache_dir": str(tmp_path)})
    hub.check_model("some/other", "config.json", {"cache_dir": str(tmp_path), "local_files_only": True})


def test_offline_mode_says_what_is_missing(monkeypatch, empty_cache):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'hf:some/text:train:text' is not on this machine.*without HF_HUB_OFFLINE"):
        next(read_documents("hf:some/text:train:text"))


def test_files_that_are_not_here_are_none(empty_cache):
    assert hub.dataset_files("some/text", "0" * 40, "*.parquet", download=False) == []
