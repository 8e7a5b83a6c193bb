"""Trials of `landmark serve`: kills, hostile requests, and a soak. docs/serving.md has what was found."""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The trials are those of the tests, which run a few where this runs many.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))

import hostile_requests
import soaked_server
from killed_server import Trial
from tiny_reader import save_chat

import landmark
from benchmarks import trials
from benchmarks.options import ServeTrialsOptions
from benchmarks.trials import Row
from landmark.cli.output import tokens_read as progress_bar
from landmark.hf.tokenizer import load_tokenizer

Part = Callable[[Path, ServeTrialsOptions], Iterator[Row]]


def run(options: ServeTrialsOptions, names: list[str]) -> Iterator[Row]:
    """One row for each trial of these parts, of a soak for each of its rounds."""
    return trials.run(options, names, lambda name, root: PARTS[name](root, options))


def _kills(root: Path, options: ServeTrialsOptions) -> Iterator[Row]:
    """Kills a server while it reads and answers, and starts it again, in one folder."""
    reader = _reader(root)
    trial = Trial(*reader, root / "data", options.seed)
    found = []
    with progress_bar("kills", options.kills) as progress:
        for _ in range(options.kills):
            found.append(trial.kill())
            progress(1)
    trial.finish()
    yield {
        "kills": len(found),
        "while_a_job_was_read": sum(one.reading > 0 for one in found),
        "while_an_answer_ran": sum(one.answering > 0 for one in found),
        "documents_verified": sum(one.documents for one in found),
        "answers_by_status": trial.counts,
        "failures": [],
    }


def _hostile(root: Path, options: ServeTrialsOptions) -> Iterator[Row]:
    """Requests made to do harm, of a user who has a key and of one who has none."""
    with hostile_requests.target(*_reader(root), root) as target:
        statuses: Counter[int] = Counter()
        failures = []
        draw = random.Random(options.seed)
        with progress_bar("hostile requests", options.requests) as progress:
            for number in range(options.requests):
                attack = hostile_requests.drawn(draw, target)
                outcome = target.attack(attack)
                statuses[outcome.status] += 1
                failures += [f"{number}: {attack}: {wrong}" for wrong in outcome.wrong]
                progress(1)
        failures += target.logged_errors()
    yield {"requests": options.requests, "by_status": dict(sorted(statuses.items())), "failures": failures}


def _soak(root: Path, options: ServeTrialsOptions) -> Iterator[Row]:
    """Users who do all that users do, beside restarts and kills; a row each round with what the server takes."""
    soak = soaked_server.Soak(*_reader(root), root / "data", options.seed, users=4)
    yield from soak.run(options.seconds, options.round)


def _reader(root: Path) -> tuple[Any, Any]:
    folder = save_chat(root)
    model = landmark.from_pretrained(folder)
    return model, load_tokenizer(folder, model)


PARTS: dict[str, Part] = {"kills": _kills, "hostile": _hostile, "soak": _soak}
