"""Conversion of a pretrained model, measured by tokens of training: the paper's fine-tuning of LLaMA-7B, at our scale.

The base model is trained with full attention on windows of 512 tokens of books, many of which hide passkeys and ask for
them. It is saved without any trace of landmarks, converted, and fine-tuned with landmarks for more and more steps, each
time from the base model and under a whole schedule. Tables "conversion" and "passkey".
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from landmark.data.recall import RecallTask
from landmark.hf.convert import convert, save_plain
from landmark.hf.loading import read_tokenizer, read_weights, to_default_device
from landmark.readers.memorizing import Memorizing
from landmark.readers.recurrent import Recurrent
from landmark.readers.sinks import Sinks
from landmark.training.recipe import Recipe
from landmark.training.run import train
from landmark.training.stages import Stage
from reproduce.runs import passkeys, perplexities
from reproduce.runs.passkeys import Measured
from reproduce.runs.perplexities import Row, SegmentReading, TestWindows
from reproduce.runs.setup import Setup
from reproduce.runs.trainings import Training, load, tokenizer_of
from reproduce.tables import names
from reproduce.tables.results import Results
from reproduce.trainings.small import BLOCK_SIZE, TOKENS_PER_STEP, WINDOW, small, stage

NEAR = RecallTask(keys=(1, 2), questions=(2, 3))
FAR = RecallTask(keys=(1, 4), questions=(2, 5))
SHORT = 192  # tokens of the windows in which recall is first learnt
READ = 2048  # tokens read where the perplexity of a converted model is measured

# Trainings.


def base_stages(setup: Setup, attention: str = "full", more: int = 0) -> tuple[Stage, ...]:
    """Short windows dense in passkeys under full attention, then longer ones with `attention`, as in `small`.

    `more` steps of the latter are those that a converted model is fine-tuned for.
    """
    steps = setup.scale.steps
    short = Stage(
        steps * 3 // 8,
        SHORT,
        TOKENS_PER_STEP * 3 // 4 // SHORT,
        attention="full",
        recall_fraction=0.8,
        recall=NEAR,
    )
    return short, stage(attention, steps // 2 + more, recall_fraction=0.5, recall=FAR)


def base_model(setup: Setup) -> Path:
    """Trains, or resumes, the model that is converted; returns its folder."""
    return _without_landmarks(setup, "base-full", base_stages(setup))


def peer(setup: Setup, attention: str) -> Path:
    """Trains, or resumes, a model that learns passkeys with `attention`, in as many steps as base and conversion."""
    return _without_landmarks(setup, f"peer-{attention}", _peer_stages(setup, attention))


def _peer_stages(setup: Setup, attention: str) -> tuple[Stage, ...]:
    return base_stages(setup, attention, conversion_steps(setup)[-1])


def _without_landmarks(setup: Setup, name: str, stages: tuple[Stage, ...]) -> Path:
    whole = Training("books", stages[-1].attention).plan(setup)
    out = whole.out.with_name(name)
    recipe = replace(whole.recipe, stages=stages)
    return train(replace(whole, out=out, recipe=recipe, json=f"{out}.jsonl"))


def plain_model(setup: Setup) -> Path:
    """The base model with full attention, saved as an ordinary transformers model; returns its folder."""
    out = setup.out / "trainings" / "plain"
    if not out.exists():
        save_plain(base_model(setup), out)
    return out


def converted(setup: Setup, steps: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model, converted and fine-tuned with landmarks for `steps` (0: converted only), and its tokenizer."""
    model = plain_model(setup)
    if steps == 0:
        untrained = read_weights(model, dtype="float32", attn_implementation="sdpa")
        tokenizer = read_tokenizer(model)
        return to_default_device(convert(untrained, block_size=BLOCK_SIZE, retrieve=2)).eval(), tokenizer
    out = setup.out / "trainings" / f"conversion-{steps}"
    plan = small(setup.corpora["books"], out, tokenizer_of(setup, "books"), steps=steps, size=setup.scale.size)
    recipe = Recipe(
        (stage("landmark", steps, recall_fraction=0.5, recall=FAR),),
        learning_rate=1e-3,
        warmup_steps=steps // 20,
        weight_decay=0.001,
        betas=(0.9, 0.95),
    )
    start = {"config": None, "model": str(model)}
    return load(train(replace(plan, recipe=recipe, json=f"{out}.jsonl", threads=setup.threads, **start)))


def conversion_steps(setup: Setup) -> tuple[int, ...]:
    """Steps of fine-tuning after which the model is measured."""
    return (0, 2) if setup.scale.quick else (0, 50, 100, 200, 400, 800)


# Measurements.


def learning_curve(setup: Setup, results: Results, windows: TestWindows) -> None:
    """The base model, and each number of steps of fine-tuning: perplexity, and passkeys at the greatest length."""
    lengths = setup.scale.key_lengths[-1:]
    before = _base(setup)
    passkeys.measure(before, setup, results, names.CONVERSION, lengths, _few(setup))
    _perplexity(before, perplexities.full(names.CONVERSION), setup, results, windows)
    for steps in conversion_steps(setup):
        print(f"conversion, {steps} steps", file=sys.stderr, flush=True)
        after = _converted(setup, steps)
        passkeys.measure(after, setup, results, names.CONVERSION, lengths, setup.scale.passkeys)
        _perplexity(after, perplexities.landmark(names.CONVERSION, READ, 2), setup, results, windows)


def passkey_retrieval(setup: Setup, results: Results) -> None:
    """Passkeys by length and depth: the converted model, its base model, and peers.

    Peers are trained for as many steps on as many passkeys as base and conversion together.
    """
    lengths = setup.scale.key_lengths
    last = _converted(setup, conversion_steps(setup)[-1])
    passkeys.measure(last, setup, results, names.PASSKEY, lengths, setup.scale.passkeys)
    for other in (_base(setup), *(_peer(setup, *peer) for peer in PEERS)):
        passkeys.measure(other, setup, results, names.PASSKEY, lengths, _few(setup))


def _few(setup: Setup) -> int:
    return min(setup.scale.passkeys, passkeys.BASELINE_PROMPTS)


def _base(setup: Setup) -> Measured:
    steps = sum(stage.steps for stage in base_stages(setup))
    return Measured(lambda: load(base_model(setup)), names.BASE_MODEL, steps, passkeys.everything, 0)


def _peer(setup: Setup, attention: str, method: str, reading: passkeys.ReadingOf) -> Measured:
    steps = sum(stage.steps for stage in _peer_stages(setup, attention))
    return Measured(lambda: load(peer(setup, attention)), method, steps, reading)


def _converted(setup: Setup, steps: int) -> Measured:
    total, tokens = _base(setup).steps + steps, steps * TOKENS_PER_STEP
    return Measured(partial(converted, setup, steps), names.LANDMARK, total, passkeys.landmark, tokens)


def _sinks(config: PretrainedConfig, length: int) -> SegmentReading:
    return SegmentReading("sinks", 256, lambda: Sinks(256, WINDOW - 4, 4))


def _recurrent(config: PretrainedConfig, length: int) -> SegmentReading:
    return SegmentReading("recurrent", 256, lambda: Recurrent(256, 256))


def _memorizing(config: PretrainedConfig, length: int) -> SegmentReading:
    return SegmentReading("knn", WINDOW, lambda: Memorizing(WINDOW, 32, config.landmark_memory_layer))


# Attention of training, method and reading.
PEERS: tuple[tuple[str, str, passkeys.ReadingOf], ...] = (
    ("full", names.FULL, passkeys.everything),
    ("full", names.SINKS, _sinks),
    ("recurrent", names.TRANSFORMER_XL, _recurrent),
    ("knn", names.MEMORIZING, _memorizing),
)


def _perplexity(measured: Measured, row: Row, setup: Setup, results: Results, windows: TestWindows) -> None:
    named = {"method": measured.method, "read_length": row.length, "corpus": "books"} | row.settings
    key = measured.key(row.table, setup) | named
    if not any("perplexity" in line for line in results.find(**key)):
        model, tokenizer = measured.load()
        figures = perplexities.measure(row, model, windows.of("books", tokenizer))
        results.add(key | figures | setup.fields())
