"""The trainings of the report; each serves all measurements of its model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from landmark.data.tokenizer import train_tokenizer
from landmark.hf.loading import to_default_device
from landmark.hf.tokenizer import load_tokenizer, quiet_transformers
from landmark.readers.memorizing import load_with_gates
from landmark.training.plan import Plan
from landmark.training.run import train
from reproduce.runs.setup import Setup
from reproduce.trainings.small import BLOCK_SIZE, VOCABULARY, small


@dataclass(frozen=True)
class Training:
    """One training on a corpus: `attention` and `changes` are those of its stage (see `trainings.small`)."""

    corpus: str
    attention: str = "landmark"
    seed: int = 0
    block_size: int = BLOCK_SIZE
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name of its own for each training: its folder."""
        parts = [self.corpus, self.attention]
        parts += [f"block{self.block_size}"] if self.block_size != BLOCK_SIZE else []
        parts += [f"{name}{value}" for name, value in self.changes.items()]
        return "-".join([*parts, f"seed{self.seed}"])

    def plan(self, setup: Setup) -> Plan:
        """The whole training at the setup's scale."""
        plan = small(
            setup.corpora[self.corpus],
            setup.out / "trainings" / self.name,
            tokenizer_of(setup, self.corpus),
            self.attention,
            block_size=self.block_size,
            steps=setup.scale.steps,
            seed=self.seed,
            size=setup.scale.size,
            **self.changes,
        )
        return replace(plan, threads=setup.threads, json=str(plan.out) + ".jsonl")

    def run(self, setup: Setup) -> Path:
        """Trains, or resumes; returns the folder of the model."""
        return train(self.plan(setup))


def tokenizer_of(setup: Setup, corpus: str) -> Path:
    """The folder of the corpus's tokenizer, trained on its texts when it is first needed."""
    folder = setup.out / corpus / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(setup.corpora[corpus].train, VOCABULARY, folder)
    return folder


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model, on the GPU if there is one, and its tokenizer."""
    quiet_transformers()
    model = to_default_device(load_with_gates(folder))
    return model.eval(), load_tokenizer(folder, model)
