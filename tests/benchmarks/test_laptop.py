"""A pretrained model beside llama.cpp and transformers, at a tiny size."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import landmark
from benchmarks import laptop
from benchmarks.__main__ import BENCHMARKS
from landmark.cli.program import USAGE_ERROR

pytest.importorskip("gguf")
pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).parents[1] / "hf"))

from tiny_gguf import written

from landmark.hf.adapter_file import FILE, describe
from landmark.hf.loading import gguf_model
from landmark.training.adapters import adapt
from landmark.training.plan import Lora


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Arguments that name a tiny model, an adapter for it and a text."""
    folder = tmp_path_factory.mktemp("laptop")
    model, lora = written(folder / "tiny.gguf"), Lora(rank=2, alpha=4)
    adapted = adapt(landmark.convert(gguf_model(model, dtype=torch.float32), block_size=7), lora, base="")
    adapted.save_pretrained(folder / "peft")
    tensors = load_file(folder / "peft" / FILE)
    described = describe(gguf_model(model, dtype=torch.float32), tensors, adapted.config.landmark, 2.0)
    save_file(tensors, folder / "adapter.safetensors", described)
    (folder / "text.txt").write_text("It was a bright cold day in April. ")
    arguments = ["laptop", str(model), "--adapter", str(folder / "adapter.safetensors"), "--threads", "1"]
    return [*arguments, "--text", str(folder / "text.txt"), "--contexts", "60,20", "--limit", "40", "--piece", "25"]


def rows_of(arguments: list[str], capsys) -> list[dict]:
    assert BENCHMARKS.main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_rows_of_all_methods_but_llama(files, capsys, monkeypatch):
    monkeypatch.setattr(laptop, "PAUSE", 0.0)
    rows = rows_of([*files, "--dtypes", "float32", "--rounds", "2", "--steps", "3"], capsys)
    methods = ("llama.cpp", "memory", "no memory", "full")
    assert [(row["context"], row["method"]) for row in rows] == [(n, name) for n in (20, 60) for name in methods]
    by_case = {(row["context"], row["method"]): row for row in rows}
    for length in (20, 60):
        assert "node" in by_case[length, "llama.cpp"]["skipped"]
    for name in ("no memory", "full"):
        assert by_case[60, name]["skipped"] == "the context is longer than limit 40"
        assert by_case[60, name]["tokens_per_s"] is None
    for case in ((20, "memory"), (20, "no memory"), (20, "full"), (60, "memory")):
        row = by_case[case]
        assert row["skipped"] is None
        # The longer one is read once, and gets as many steps as the shorter one in two rounds.
        assert (row["rounds"], row["steps"]) == (2 if case[0] == 20 else 1, 6)
        assert 0 < row["lowest_tokens_per_s"] <= row["tokens_per_s"] <= row["highest_tokens_per_s"]
        assert 0 < row["lower_quartile_step_s"] <= row["step_s"] <= row["upper_quartile_step_s"]
        assert row["last_tokens_per_s"] > 0
        assert row["release"].startswith("torch ")


class Counting:
    """Stands for a process: counts what it is asked to read, each token a second, and decodes."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def ask(self, call: dict) -> object:
        self.asked.append((call["call"], call.get("count", 0)))
        return [1.0] * call["count"] if call["call"] == "decode" else float(call.get("count", 0)) or None


def test_weights_in_8_bits_are_of_converted_models(files, capsys, monkeypatch):
    monkeypatch.setattr(laptop, "PAUSE", 0.0)
    arguments = ["--dtypes", "int8", "--methods", "memory,full", "--contexts", "20", "--rounds", "1", "--steps", "1"]
    (row,) = rows_of([*files, *arguments], capsys)
    assert (row["method"], row["dtype"], row["skipped"]) == ("memory", "int8", None)


def test_all_read_the_same_tokens_in_pieces_and_by_turns(files, monkeypatch):
    options = laptop.LaptopOptions(
        model=Path(files[1]), adapter=Path(files[3]), contexts="20,60", limit=20, piece=25, rounds=2, steps=3
    )
    asked = laptop.check(options)
    contenders, order = [], []
    for method in ("memory", "full"):
        contender, process = laptop.Contender(method, "float32", [], 1, "none"), Counting()
        contender.problem = ""
        monkeypatch.setattr(contender, "_ask", lambda call, p=process, m=method: order.append(m) or p.ask(call))
        contenders.append((contender, process))
    done = []
    for turn in range(2):
        laptop._measure(asked, [contender for contender, _ in contenders], turn, done.append)
    (memory, its_calls), (full, other_calls) = contenders
    begin = [("start", 0), ("read", 20), ("decode", 4)]
    # 20 tokens and 4 steps are behind it: 36 more, in two pieces of the 40 between the lengths; steps are repeated.
    assert its_calls.asked == [*begin, ("read", 16), ("read", 20), ("decode", 4), ("decode", 4), *begin]
    assert other_calls.asked == [*begin, *begin]
    assert memory.speeds == {20: [1.0, 1.0], 60: [1.0]}
    assert full.speeds == {20: [1.0, 1.0]}
    assert order[2] != order[-4], "each round begins with another contender"
    assert sum(done) == 20 + 20 + 60 + 20


def test_a_contender_that_ends_has_the_reason_in_its_row(files, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(laptop, "PAUSE", 0.0)
    monkeypatch.setattr(laptop.shutil, "which", lambda name: "/bin/false")
    rows = rows_of([*files, "--methods", "llama.cpp", "--llama", str(tmp_path)], capsys)
    assert {row["skipped"] for row in rows} == {"its process ended with code 1"}
    assert BENCHMARKS.main([*files, "--methods", "llama.cpp", "--llama", str(tmp_path)]) == 0
    assert "its process ended" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_for_node_says_what_is_missing(tmp_path):
    script = Path(laptop.__file__).with_name("llama_reader.mjs")
    ended = subprocess.run(["node", script, tmp_path, "a.gguf", "ids.json", "1"], capture_output=True, text=True)
    (line,) = ended.stdout.splitlines()
    assert "node-llama-cpp" in json.loads(line)["error"]
    assert ended.returncode == 1


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--methods", "memory,zork", "methods has 'zork': choose some of llama.cpp, memory"),
        ("--dtypes", "int3", "dtypes has 'int3'"),
        ("--contexts", "0", "contexts is '0'"),
        ("--threads", "1000", "threads is '1000'"),
        ("--adapter", "none.safetensors", "cannot be read as an adapter"),
        ("--text", "none.txt", "none.txt"),
    ],
)
def test_wrong_options(files, option, value, said, capsys):
    assert BENCHMARKS.main([*files, option, value]) == USAGE_ERROR
    assert said in capsys.readouterr().err
