"""SmolLM2-135M-Instruct converted by self-distillation.

Windows grow from 512 to 8,192 positions, its trained range. Retrieval is learnt in the first minutes of a GPU on short
windows; to come near the original on plain text, which is most of every window, takes longer. Recall tasks come as
conversations in the model's chat template and as plain text. The later stages add distractors, in answers alone: the
attention that they take from text would count as divergence, and teaches nothing about retrieval.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from landmark.data.recall import RecallTask
from landmark.training.plan import Lora, Plan
from landmark.training.recipe import Recipe
from landmark.training.stages import Stage
from reproduce.trainings.corpus import text_files

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SETTINGS: dict[str, Any] = {"block_size": 63, "retrieve": 4, "local_blocks": 1}
LORA = Lora(rank=16, alpha=32)
LEARNING_RATE = 1e-3
WARMUP = 30


def _task(keys: int, questions: int, weight: float) -> RecallTask:
    return RecallTask(keys=(1, keys), questions=(1, questions), answer_weight=weight, chat=0.6)


def _among(distractors: int, stage: Stage) -> Stage:
    return replace(
        stage,
        attention="landmark_distractors",
        distractors=distractors,
        distract_answers=True,
        retrieve=SETTINGS["retrieve"],
    )


# Some 25,000 tokens a step each; steps as a GPU of 80 GB makes them in minutes.
STAGES = (
    Stage(200, 512, 48, recall_fraction=0.6, recall=_task(3, 3, 5.0)),
    Stage(350, 2048, 12, recall_fraction=0.6, recall=_task(8, 6, 5.0)),
    _among(2048, Stage(250, 4096, 6, recall_fraction=0.6, recall=_task(12, 8, 3.0))),
    _among(4096, Stage(150, 8192, 3, recall_fraction=0.5, recall=_task(16, 10, 3.0))),
)


@dataclass(frozen=True)
class Clocked:
    """A training against the clock: stages, each for its share of the time, and the share of conversations in text."""

    stages: tuple[Stage, ...]
    shares: tuple[float, ...]
    learning_rate: float
    chats: float


CONVERSION = Clocked(STAGES, (0.22, 0.38, 0.25, 0.15), LEARNING_RATE, chats=0.2)
# Some 2,000 tokens a step, which a CPU makes in a quarter of a minute and 6 GB.
REFINEMENT = Clocked(
    (Stage(800, 1024, 2, recall_fraction=0.35, recall=_task(6, 5, 3.0)),), (1.0,), LEARNING_RATE / 5, chats=0.4
)


def smollm2_135m(out: Path, data: Path, model: str = MODEL, *, seed: int = 0) -> Plan:
    """The conversion with the text files in `data`/books/train; `model` is a folder, a GGUF file or the hub's name."""
    steps = sum(stage.steps for stage in STAGES)
    return Plan(
        texts=text_files(data / "books" / "train"),
        validation=text_files(data / "books" / "validation"),
        out=out,
        model=model,
        recipe=Recipe(
            STAGES,
            learning_rate=LEARNING_RATE,
            final_learning_rate=LEARNING_RATE / 30,
            warmup_steps=min(WARMUP, steps - 1),
            weight_decay=0.0,
        ),
        block_size=SETTINGS["block_size"],
        retrieve=SETTINGS["retrieve"],
        adapter=LORA,
        distill=True,
        eval_windows=8,
        seed=seed,
    )
