"""A plain model, trained here, that learns to use landmarks: the paper's fine-tuning of LLaMA-7B at our scale.

The ancestor reads windows of 512 tokens of books with full attention, many of which hide keys and ask for them. It is
then saved as a model that knows nothing of landmarks, converted, and trained on for more and more steps, each time from
the ancestor and under a whole schedule. What it learns is what a number of tokens of conversion buys.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from landmark.data.recall import RecallTask
from landmark.training.stages import Stage
from reproduce.runs.setup import Setup
from reproduce.runs.trainings import Training, load, tokenizer_of
from landmark.hf.convert import convert
from landmark.hf.loading import to_default_device
from reproduce.plain_model import load_plain, save_plain
from reproduce.trainings.small import BLOCK_SIZE, TOKENS_PER_STEP, small, stage
from landmark.training.recipe import Recipe
from landmark.training.run import train

NEAR = RecallTask(keys=(1, 2), questions=(2, 3))
FAR = RecallTask(keys=(1, 4), questions=(2, 5))
SHORT = 192  # tokens of the windows in which keys are first learnt


def ancestor_stages(setup: Setup, attention: str) -> tuple[Stage, ...]:
    """Short windows full of keys under full attention, then longer ones with `attention`, as `recipes.small` has it."""
    steps = setup.scale.steps
    short = Stage(
        steps * 3 // 8,
        SHORT,
        TOKENS_PER_STEP * 3 // 4 // SHORT,
        attention="full",
        recall_fraction=0.8,
        recall=NEAR,
    )
    return short, stage(attention, steps // 2, recall_fraction=0.5, recall=FAR)


def ancestor(setup: Setup, attention: str = "full") -> Path:
    """The folder of a model that has learnt keys without landmarks."""
    whole = Training("books", attention).plan(setup)
    out = whole.out.with_name(f"ancestor-{attention}")
    recipe = replace(whole.recipe, stages=ancestor_stages(setup, attention))
    return train(replace(whole, out=out, recipe=recipe, json=f"{out}.jsonl"))


def plain_model(setup: Setup) -> Path:
    """The ancestor with full attention as a model that knows nothing of landmarks."""
    out = setup.out / "trainings" / "plain"
    if not out.exists():
        save_plain(ancestor(setup), out)
    return out


def converted(setup: Setup, steps: int) -> tuple[Any, Any]:
    """The plain model, converted and trained with landmarks for so many steps, none for 0; and its tokenizer."""
    model = plain_model(setup)
    if steps == 0:
        untrained, tokenizer = load_plain(model)
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
    """Steps of conversion after which the model is measured."""
    return (0, 2) if setup.scale.quick else (0, 50, 100, 200, 400, 800)


def tokens_of(steps: int) -> int:
    """Ordinary tokens of so many steps."""
    return steps * TOKENS_PER_STEP
