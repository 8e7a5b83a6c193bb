"""What is measured of the conversion experiment: the tables "conversion" and "pass_key"."""

import sys
from functools import partial
from typing import Any

from reproduce.runs.segments import SegmentReading
from reproduce.runs import passkeys, perplexities
from reproduce.runs.conversion import ancestor, ancestor_stages, conversion_steps, converted, tokens_of
from reproduce.runs.passkeys import Asked
from reproduce.runs.perplexities import Row, TestWindows
from reproduce.runs.setup import Setup
from reproduce.runs.trainings import load
from landmark.readers.memorizing import Memorizing
from landmark.readers.recurrent import Recurrent
from landmark.readers.sinks import Sinks
from reproduce.trainings.small import WINDOW
from reproduce.tables import words
from reproduce.tables.results import Results

READ = 2048  # tokens read where the perplexity of a conversion is measured
PEERS = {"recurrent": words.TRANSFORMER_XL, "knn": words.MEMORIZING}


def learning_curve(setup: Setup, results: Results, windows: TestWindows) -> None:
    """The plain model before, and after each number of conversion steps: perplexity, and keys at the longest length."""
    lengths = setup.scale.key_lengths[-1:]
    before = _ancestor(setup)
    passkeys.measure(before, setup, results, words.CONVERSION, lengths, _few(setup))
    _perplexity(before, perplexities.full(words.CONVERSION), setup, results, windows)
    for steps in conversion_steps(setup):
        print(f"conversion, {steps} steps", file=sys.stderr, flush=True)
        after = _converted(setup, steps)
        passkeys.measure(after, setup, results, words.CONVERSION, lengths, setup.scale.passkeys)
        _perplexity(after, perplexities.landmark(words.CONVERSION, READ, 2), setup, results, windows)


def pass_keys(setup: Setup, results: Results) -> None:
    """Keys by length and depth: the converted model, its ancestor, and the peers trained on the same keys."""
    lengths = setup.scale.key_lengths
    last = _converted(setup, conversion_steps(setup)[-1])
    passkeys.measure(last, setup, results, words.PASS_KEY, lengths, setup.scale.passkeys)
    ways = [_ancestor(setup), _ancestor(setup, words.SINKS, _sinks)]
    for attention, method in PEERS.items():
        steps = sum(stage.steps for stage in ancestor_stages(setup, attention))
        ways.append(Asked(partial(_load_ancestor, setup, attention), method, steps, _peer(attention)))
    for one in ways:
        passkeys.measure(one, setup, results, words.PASS_KEY, lengths, _few(setup))


def _few(setup: Setup) -> int:
    return min(setup.scale.passkeys, passkeys.PEER_PROMPTS)


def _load_ancestor(setup: Setup, attention: str) -> tuple[Any, Any]:
    return load(ancestor(setup, attention))


def _ancestor(setup: Setup, method: str = words.ANCESTOR, way: passkeys.Way = passkeys.everything) -> Asked:
    steps = sum(stage.steps for stage in ancestor_stages(setup, "full"))
    return Asked(partial(_load_ancestor, setup, "full"), method, steps, way, 0)


def _converted(setup: Setup, steps: int) -> Asked:
    before = _ancestor(setup).steps
    return Asked(partial(converted, setup, steps), words.LANDMARK, before + steps, passkeys.landmark, tokens_of(steps))


def _sinks(config: Any, length: int) -> SegmentReading:
    return SegmentReading("sinks", 256, lambda: Sinks(256, WINDOW - 4, 4))


def _peer(attention: str) -> passkeys.Way:
    def way(config: Any, length: int) -> SegmentReading:
        if attention == "recurrent":
            return SegmentReading("recurrent", 256, lambda: Recurrent(256, 256))
        return SegmentReading("knn", WINDOW, lambda: Memorizing(WINDOW, 32, config.landmark_memory_layer))

    return way


def _perplexity(asked: Asked, row: Row, setup: Setup, results: Results, windows: TestWindows) -> None:
    named = {"method": asked.method, "read_length": row.length, "corpus": "books"} | row.settings
    key = asked.key(row.table, setup) | named
    if not any("perplexity" in line for line in results.find(**key)):
        model, tokenizer = asked.load()
        figures = perplexities.measure(row, model, windows.of("books", tokenizer))
        results.add(key | figures | setup.fields())
