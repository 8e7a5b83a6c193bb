"""The training mixture: windows of tokenized text and recall windows, micro-batch by micro-batch.

A micro-batch is a function of (seed, its number) and nothing else, so a resumed run sees exactly the batches
that an uninterrupted one would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from landmark.blocks import tokens_that_fit
from landmark.data.recall import ANSWER, COPY, HIDDEN, TEXT, Piece, RecallTask, RecallWindows

IGNORED = -100


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one kind of batch.

    `window_positions` counts landmarks: it is the length the model sees. `gates` off trains plain causal
    attention over the same stream. `recall_fraction` is the probability that a window is a recall window.
    """

    steps: int
    window_positions: int
    batch_size: int
    gates: bool = True
    recall_fraction: float = 0.0
    recall: RecallTask = field(default_factory=RecallTask)

    def __post_init__(self) -> None:
        for name in ("steps", "window_positions", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"a stage's {name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.recall_fraction <= 1:
            raise ValueError(f"a stage's recall_fraction must be from 0 to 1, not {self.recall_fraction}")


class StageBatches(Dataset):
    """Micro-batches of consecutive stages, numbered from 0; `micro_batches` of them make an optimizer step.

    `ids` is a 1-d array of ordinary tokens (see `TokenFile`). An item is a dictionary of model inputs:
    `input_ids [B, N]`, `labels [B, N]` (-100 where the loss looks away; not shifted), `loss_weights [B, N]`
    (float32), `token_kinds [B, N]` (uint8, see `landmark.data.recall`), `landmark_phase` (int) and
    `landmark_gates` (bool). The phase is uniform over 0 .. block_size - 1 and common to the micro-batch, and
    N is the largest number of ordinary tokens that fits `window_positions` with it.

    Raises ValueError if the text is shorter than a window or recall tasks do not fit theirs.
    """

    def __init__(
        self,
        ids: np.ndarray,
        tokenizer: Tokenizer,
        stages: Sequence[Stage],
        *,
        block_size: int,
        seed: int,
        micro_batches: int = 1,
    ) -> None:
        self.ids = ids
        self.stages = list(stages)
        self.block_size = block_size
        self.seed = seed
        self.micro_batches = micro_batches
        self.stops = np.cumsum([stage.steps for stage in self.stages])
        self.recall = [self._recall_windows(stage, tokenizer) for stage in self.stages]
        longest = max(stage.window_positions for stage in self.stages)
        if len(ids) < longest:
            raise ValueError(f"the text has {len(ids)} tokens, fewer than a window of {longest}; give more text")

    def __len__(self) -> int:
        return int(self.stops[-1]) * self.micro_batches

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int | bool]:
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        number = int(np.searchsorted(self.stops, index // self.micro_batches, side="right"))
        stage, recall = self.stages[number], self.recall[number]
        rng = np.random.default_rng([self.seed, index])
        phase = int(rng.integers(self.block_size))
        length = tokens_that_fit(stage.window_positions, self.block_size, phase)
        rows = [self._window(stage, recall, length, rng) for _ in range(stage.batch_size)]
        return _collate(rows, stage.recall.answer_weight) | {
            "landmark_phase": phase,
            "landmark_gates": stage.gates,
        }

    def _window(self, stage: Stage, recall: RecallWindows | None, length: int, rng: np.random.Generator) -> Piece:
        start = int(rng.integers(len(self.ids) - length + 1))
        text = np.asarray(self.ids[start : start + length], np.int64)
        if recall is not None and rng.random() < stage.recall_fraction:
            return recall.window(text, rng)
        return Piece(text, np.full(length, TEXT, np.uint8))

    def _recall_windows(self, stage: Stage, tokenizer: Tokenizer) -> RecallWindows | None:
        shortest = min(lengths(stage, self.block_size))
        if shortest < 2:
            raise ValueError(
                f"a window of {stage.window_positions} positions has no room for two tokens and their "
                "landmarks; make windows longer"
            )
        return RecallWindows(stage.recall, tokenizer, shortest) if stage.recall_fraction > 0 else None


def lengths(stage: Stage, block_size: int) -> list[int]:
    """Ordinary tokens in a window of `stage`, for each phase."""
    return [tokens_that_fit(stage.window_positions, block_size, phase) for phase in range(block_size)]


def tokens_per_step(stage: Stage, block_size: int, micro_batches: int) -> int:
    """Ordinary tokens that an optimizer step of `stage` reads, on average over phases (rounded)."""
    return round(sum(lengths(stage, block_size)) / block_size * stage.batch_size * micro_batches)


def _collate(rows: list[Piece], answer_weight: float) -> dict[str, torch.Tensor]:
    input_ids = torch.from_numpy(np.stack([row.ids for row in rows]))
    kinds = torch.from_numpy(np.stack([row.kinds for row in rows]))
    weights = torch.ones(kinds.shape)
    weights[(kinds == ANSWER) | (kinds == COPY)] = answer_weight
    weights[kinds == HIDDEN] = 0.0
    labels = input_ids.masked_fill(kinds == HIDDEN, IGNORED)
    return {"input_ids": input_ids, "labels": labels, "loss_weights": weights, "token_kinds": kinds}
