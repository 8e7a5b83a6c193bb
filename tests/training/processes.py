"""Trainings in processes of their own, started by torchrun where there are several of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

STEPS = 6
WAYS = ("ddp", "fsdp", "sequence")
# Heads for four processes to share.
HEADS = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
SEVERAL = Path(__file__).parent / "several.py"


def options(
    material: Path, out: Path, *more: str, steps: int = STEPS, save_every: int = 2, rate: float = 0.01
) -> list[str]:
    """Arguments of `landmark train` for a training of so many steps; its log is beside `out`."""
    config = material / "heads.json"
    if not config.exists():
        config.write_text(json.dumps(json.loads((material / "config.json").read_text()) | HEADS))
    told = ["--texts", str(material / "text.txt"), "--out", str(out), "--json", log_of(out), "--config", str(config)]
    told += ["--tokenizer", str(material / "tokenizer"), "--steps", str(steps), "--window-positions", "96"]
    told += ["--batch-size", "2", "--micro-batches", "4", "--block-size", "7"]
    return [*told, "--learning-rate", str(rate), "--log-every", "1", "--save-every", str(save_every), *more]


def log_of(out: Path) -> str:
    return str(out) + ".jsonl"


def start(processes: int, *trainings: list[str]) -> subprocess.Popen:
    """Carry the trainings out one after another, each in all the processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SEVERAL), json.dumps(trainings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(running: subprocess.Popen) -> None:
    _, said = running.communicate(timeout=500)
    assert running.returncode == 0, said


def kill_after(step: int, out: Path, running: subprocess.Popen, worker: int) -> None:
    """Kill a worker without a warning as soon as `step` of the training `out` is logged."""
    log, deadline = Path(log_of(out)), time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= step):
        assert time.monotonic() < deadline, f"step {step} never came"
        time.sleep(0.01)
    os.kill(psutil.Process(running.pid).children()[worker].pid, signal.SIGKILL)


def resumable(out: Path, copy: Path, step: int) -> Path:
    """A copy of the finished training `out` as if it had been lost after the checkpoint of `step`, its last but one."""
    last = max(int(folder.name.partition("-")[2]) for folder in out.glob("checkpoint-*"))
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("model", f"checkpoint-{last}"))
    assert (copy / f"checkpoint-{step}").exists()
    lines = Path(log_of(out)).read_text().splitlines(keepends=True)
    Path(log_of(copy)).write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    return copy


def measures(out: Path) -> torch.Tensor:
    """Step, loss, loss of the text and norm of the gradient, `[n, 4]`, of all logged steps."""
    events = [json.loads(line) for line in Path(log_of(out)).read_text().splitlines()]
    names = ("step", "loss", "text_loss", "grad_norm")
    return torch.tensor([[e[name] for name in names] for e in events if e["event"] == "train"], dtype=torch.float64)


def assert_same_training(found: torch.Tensor, expected: torch.Tensor, which: str) -> None:
    assert found[:, 0].tolist() == expected[:, 0].tolist(), which
    for number, (atol, rtol) in enumerate(((1e-5, 0), (1e-5, 0), (0, 1e-3)), start=1):
        torch.testing.assert_close(
            found[:, number], expected[:, number], atol=atol, rtol=rtol, msg=lambda said: f"{which}: {said}"
        )
