"""Recall of a model before and after conversion, beside baselines: runs of `landmark eval recall`, in one table."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import landmark
from landmark.cli.output import print_escaped
from landmark.cli.recall import RecallOptions, run_recall
from landmark.evaluation.asking import Sample, summary
from landmark.evaluation.recall import NAMES
from landmark.files import written_whole
from reproduce.studies.options import RecallTablesOptions

TABLE = "recall.md"


@dataclass(frozen=True)
class Run:
    """Texts of one length, read in one way; `seconds` for a text and its questions plan how time is shared.

    They are rough figures of SmolLM2-135M on one thread of a Zen 5 core, in float32.
    """

    name: str
    options: RecallOptions
    seconds: float
    converted: bool = False

    @property
    def minutes(self) -> float:
        return self.seconds * self.options.samples / 60


def _run(name: str, length: int, samples: int, seconds: float, *, converted: bool = False, **given: Any) -> Run:
    options = RecallOptions(lengths=str(length), samples=samples, form="chat", **given)
    return Run(f"{name}_{length}", options, seconds, converted)


# Windows and passages of 2,048 tokens: what a chunk through memory has in sight, and a quarter of the trained range.
BASELINES = (
    _run("full", 4096, 50, 33, attention="full"),
    _run("full", 8192, 50, 58, attention="full"),
    _run("bm25", 8192, 50, 66, rag="bm25", rag_tokens=2048),
    _run("bm25", 32768, 50, 70, rag="bm25", rag_tokens=2048),
    _run("sinks", 8192, 20, 100, attention="sinks", window=2048),
    _run("sinks", 32768, 10, 360, attention="sinks", window=2048),
    _run("yarn", 16384, 10, 170, attention="yarn"),
    _run("yarn", 32768, 10, 540, attention="yarn"),
    _run("bm25", 131072, 20, 85, rag="bm25", rag_tokens=2048),
)
CONVERTED = (
    _run("landmark", 4096, 50, 29, converted=True, attention="landmark"),
    _run("landmark", 8192, 50, 42, converted=True, attention="landmark"),
    _run("landmark", 16384, 50, 70, converted=True, attention="landmark"),
    _run("landmark", 32768, 50, 125, converted=True, attention="landmark"),
    _run("none", 8192, 20, 38, converted=True, attention="none"),
    _run("none", 32768, 10, 115, converted=True, attention="none"),
    _run("landmark", 131072, 10, 455, converted=True, attention="landmark"),
)
PARTS = {"baselines": BASELINES, "converted": CONVERTED, "table": ()}


def run(options: RecallTablesOptions) -> int:
    """Runs a part as far as there is time, each run for its share of it, and writes the table of all runs so far."""
    torch.set_num_threads(options.threads)
    runs = chosen(PARTS[options.part], options.only)
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    for one in runs:
        print_escaped(f"{one.name}: {one.options.samples} texts, about {one.minutes:.0f} minutes on a quiet core")
    for number, one in enumerate(runs):
        left = (ends - time.monotonic()) / 60
        share = left * one.minutes / sum(later.minutes for later in runs[number:])
        if share > 0:
            adapter = (options.adapter or landmark.adapter_path()) if one.converted else None
            given = {"model": options.model, "adapter": adapter, "numbers": options.numbers}
            given |= {"haystack": options.haystack, "minutes": share}
            print_escaped(f"{one.name}: {share:.1f} minutes")
            run_recall(replace(one.options, out=options.out / f"{one.name}.jsonl", **given))
            _write_table(options.out)
    print_escaped(_write_table(options.out), lines=True)
    return 0


def _write_table(folder: Path) -> str:
    text = table(folder)
    with written_whole(folder / TABLE) as partial:
        partial.write_text(text, encoding="utf-8")
    return text


def chosen(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs of these names, all without any; raises ValueError for a name that there is not."""
    known = {one.name: one for one in runs}
    for name in names:
        if name not in known:
            raise ValueError(f"this part has no run {name!r}: choose of {', '.join(known)}")
    return [known[name] for name in names or known]


def table(folder: Path) -> str:
    """The share of right answers with its interval, and the number of questions, of all runs in a folder."""
    lines = [f"| attention | tokens | {' | '.join(NAMES)} |", "| --- " * (len(NAMES) + 2) + "|"]
    for one in (*BASELINES, *CONVERTED):
        rows = figures(folder / f"{one.name}.jsonl")
        if rows:
            cells = " | ".join(_cell(rows[name]) if name in rows else "" for name in NAMES)
            lines.append(f"| {one.name.split('_')[0]} | {int(one.options.lengths):,} | {cells} |")
    return "\n".join(lines) + "\n"


def figures(log: Path) -> dict[str, dict[str, Any]]:
    """The figures of each task in a log of answers."""
    if not log.exists():
        return {}
    lines = log.read_text(encoding="utf-8").splitlines()[1:]
    samples = [Sample(**json.loads(line)) for line in lines if line.endswith("}")]
    tasks = dict.fromkeys(sample.task for sample in samples)
    return {task: summary([sample for sample in samples if sample.task == task], {}) for task in tasks}


def _cell(row: dict[str, Any]) -> str:
    return f"{row['right']:.0%} ({row['low']:.0%}-{row['high']:.0%}), {row['samples']}"
