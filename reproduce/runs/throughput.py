"""Training throughput and peak memory of each attention: short trainings in turn, each in a fresh process."""

import json
import multiprocessing
import shutil
import sys
from dataclasses import replace
from statistics import median

import torch

from landmark.process_memory import MEGABYTE, peak_bytes
from landmark.training.plan import Plan
from landmark.training.run import train
from reproduce.runs.setup import Setup
from reproduce.runs.trainings import Training
from reproduce.tables import names
from reproduce.tables.results import Results
from reproduce.trainings.small import WINDOW

METHODS = {"full": names.FULL, "landmark": names.LANDMARK, "recurrent": names.TRANSFORMER_XL}


def measure(setup: Setup, results: Results) -> None:
    """Adds a line for each method, of windows of 512 tokens; nothing else should run on the machine."""
    rounds, steps = (1, 4) if setup.scale.quick else (3, 16)
    key = {"table": names.THROUGHPUT, "read_length": WINDOW, "seed": 0, "steps": steps}
    if all(results.has(**key, method=method) for method in METHODS.values()):
        return
    speeds: dict[str, list[float]] = {attention: [] for attention in METHODS}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for attention in METHODS:
            speed, memory[attention] = _in_fresh_process(_short(attention, steps, setup))
            speeds[attention].append(speed)
            print(f"  training speed, {METHODS[attention]}: {speed:,.0f} tokens/s", file=sys.stderr, flush=True)
    for attention, method in METHODS.items():
        figures = {"tokens_per_second": median(speeds[attention]), "memory_mb": memory[attention]}
        results.add(key | {"method": method, "rounds": speeds[attention]} | figures | setup.fields())


def _short(attention: str, steps: int, setup: Setup) -> Plan:
    """A training of a few steps that measures nothing and keeps no checkpoint."""
    whole = Training("books", attention).plan(setup)
    stages = (replace(whole.recipe.stages[0], steps=steps),)
    recipe = replace(whole.recipe, stages=stages, warmup_steps=1)
    out = whole.out.with_name("throughput")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    quiet = {"validation": (), "log_every": steps // 4, "save_every": steps + 1, "json": str(out / "log.jsonl")}
    return replace(whole, recipe=recipe, out=out, **quiet)


def _in_fresh_process(plan: Plan) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train, (plan,))


def _train(plan: Plan) -> tuple[float, float]:
    """Tokens a second of the last half of the steps, and peak memory in MB: of the GPU, or else of the process."""
    train(plan)
    assert plan.json is not None, "the plan says where its log goes"
    with open(plan.json, encoding="utf-8") as log:
        events = [json.loads(line) for line in log]
    speeds = [event["tokens_per_second"] for event in events if event["event"] == "train"]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()
    return median(speeds[len(speeds) // 2 :]), peak / MEGABYTE
