"""Stages of a training curriculum and their micro-batches: windows of text mixed with recall windows.

A micro-batch depends on the seed and its number alone, so a resumed run gets exactly the batches of an uninterrupted
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from landmark.data.chat import ChatFormat
from landmark.data.recall import ANSWER, COPY, HIDDEN, TEXT, Piece, RecallTask, RecallWindows
from landmark.stream import tokens_that_fit
from landmark.training.loss import IGNORED

# Attentions of a stage: whether windows hold landmarks, and whether they are read in several segments.
ATTENTIONS = {
    "landmark": (True, False),
    "landmark_distractors": (True, False),
    "landmark_recurrent": (True, True),
    "landmark_retrieval": (True, True),
    "full": (False, False),
    "recurrent": (False, True),
    "knn": (False, True),
}


@dataclass(frozen=True)
class Stage:
    """A stage of the curriculum: `steps` optimizer steps on one kind of micro-batch.

    `window_positions` includes landmarks: it is the sequence length of the model. Without `gates`, attention is plain
    causal attention over the same stream. `recall_fraction` is the probability of a recall window.

    `attention` is one of `ATTENTIONS`:

    - "landmark": the grouped softmax (section 3.1 of the paper). `jumps` is the largest jump of position between two
      blocks, `block_dropout` the probability that a layer masks a block.
    - "landmark_recurrent": the same over `segments` of a window, with the previous segment as a recurrent window.
    - "landmark_retrieval": the same, but earlier segments are read through memory, `retrieve` blocks a query.
    - "landmark_distractors": "landmark" with the newest `distractors` landmarks of plain windows in the softmax of
      recall windows; with `distract_answers` only where these answer.
    - "full", "recurrent" (Transformer-XL) and "knn" (Memorizing Transformer, `retrieve` keys a query): no landmarks.

    With `packing`, attention is masked between documents, and the first token of a document is not predicted from the
    one before. A recall window counts as one document, for its questions ask across it.
    """

    steps: int
    window_positions: int
    batch_size: int
    gates: bool = True
    attention: str = "landmark"
    segments: int = 1
    retrieve: int = 2
    jumps: int = 0
    block_dropout: float = 0.0
    distractors: int = 0
    distract_answers: bool = False
    packing: bool = False
    recall_fraction: float = 0.0
    recall: RecallTask = field(default_factory=RecallTask)

    def __post_init__(self) -> None:
        for name in ("steps", "window_positions", "batch_size", "segments", "retrieve"):
            if getattr(self, name) < 1:
                raise ValueError(f"a stage's {name} must be at least 1, not {getattr(self, name)}")
        for name in ("recall_fraction", "block_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"a stage's {name} must be from 0 to 1, not {getattr(self, name)}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"a stage's attention is {self.attention!r}: choose one of {', '.join(ATTENTIONS)}")
        if self.jumps < 0:
            raise ValueError(f"a stage's jumps must be 0 or more, not {self.jumps}")
        if (self.segments > 1) != ATTENTIONS[self.attention][1]:
            wanted = "2 or more segments" if self.segments == 1 else "1 segment"
            raise ValueError(f"a stage with attention {self.attention!r} has {wanted}, not {self.segments}")
        if (self.distractors > 0) != (self.attention == "landmark_distractors"):
            raise ValueError(
                f"a stage with attention {self.attention!r} keeps {self.distractors} distractors: give a number above "
                "0 with attention 'landmark_distractors', and with no other"
            )
        if self.distractors and not 0 < self.recall_fraction < 1:
            raise ValueError(
                "distractors come from plain windows and go to recall windows: give a recall_fraction between "
                f"0 and 1, not {self.recall_fraction}"
            )
        if self.distract_answers and not self.distractors:
            raise ValueError("a stage's distract_answers is for attention 'landmark_distractors': leave it out")
        changed = {"gates": not self.gates, "jumps": self.jumps, "block_dropout": self.block_dropout}
        changed["packing"] = self.packing
        if self.attention != "landmark" and any(changed.values()):
            raise ValueError(
                f"{', '.join(name for name, value in changed.items() if value)} change landmark attention over one "
                f"segment: leave them out with attention {self.attention!r}"
            )

    @property
    def has_landmarks(self) -> bool:
        """Whether windows hold landmarks."""
        return ATTENTIONS[self.attention][0]


class StageBatches(Dataset):
    """Micro-batches of consecutive stages, numbered from 0; `micro_batches` of them make an optimizer step.

    `ids` is a 1-d array of ordinary tokens (see `TokenFile`). An item is a dictionary of model inputs:
    `input_ids [B, N]`, `labels [B, N]` (`IGNORED` where not predicted; not shifted), `loss_weights [B, N]` (float32),
    `token_kinds [B, N]` (uint8, see `landmark.data.recall`), and for the attention `stage`, `phase` (int),
    `jumps [B, N]` (long, None without) and `documents [B, N]` (long, the documents of a row numbered from 0, None
    without packing). The phase is uniform over 0 .. block_size - 1 and the same for the whole micro-batch; N is the
    largest number of ordinary tokens that fits `window_positions` with it. Packing needs `document_stops`, where each
    document of `ids` ends; recall windows as chat need a `chat_format`.

    Raises ValueError if the text is shorter than a window, if recall tasks do not fit their windows, or if a stage
    packs documents without `document_stops`.
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
        document_stops: Sequence[int] | None = None,
        chat_format: ChatFormat | None = None,
    ) -> None:
        self.chat_format = chat_format
        self.ids = ids
        self.stages = list(stages)
        self.block_size = block_size
        self.seed = seed
        self.micro_batches = micro_batches
        self.document_stops = np.asarray([len(ids)] if document_stops is None else document_stops)
        self.stops = np.cumsum([stage.steps for stage in self.stages])
        self.recall = [self._recall_windows(stage, tokenizer) for stage in self.stages]
        check_length(ids, self.stages, "text")
        if document_stops is None and any(stage.packing for stage in self.stages):
            raise ValueError("a stage packs documents: pass document_stops, where each document of the text ends")

    def __len__(self) -> int:
        return int(self.stops[-1]) * self.micro_batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        number = int(np.searchsorted(self.stops, index // self.micro_batches, side="right"))
        stage, recall = self.stages[number], self.recall[number]
        rng = np.random.default_rng([self.seed, index])
        phase = int(rng.integers(self.block_size))
        length = window_tokens(stage, self.block_size, phase)
        windows = [self._window(stage, recall, length, rng) for _ in range(stage.batch_size)]
        rows = [window for window, _ in windows]
        jumps = None
        if stage.jumps:
            jumps = torch.from_numpy(rng.integers(stage.jumps, size=(len(rows), length), endpoint=True))
        batch = _collate(rows, stage.recall.answer_weight) | {"stage": stage, "phase": phase, "jumps": jumps}
        if not stage.packing:
            return batch | {"documents": None}
        documents = torch.from_numpy(np.stack([of_window for _, of_window in windows]))
        begins = documents.diff(dim=1, prepend=documents[:, :1]) != 0
        return batch | {"documents": documents, "labels": batch["labels"].masked_fill(begins, IGNORED)}

    def _window(
        self, stage: Stage, recall: RecallWindows | None, length: int, rng: np.random.Generator
    ) -> tuple[Piece, np.ndarray]:
        """A window of `length` tokens, and the document of each."""
        start = int(rng.integers(len(self.ids) - length + 1))
        text = np.asarray(self.ids[start : start + length], np.int64)
        if recall is not None and rng.random() < stage.recall_fraction:
            return recall.window(text, rng), np.zeros(length, np.int64)
        return Piece(text, np.full(length, TEXT, np.uint8)), self._documents(start, length)

    def _documents(self, start: int, length: int) -> np.ndarray:
        # An empty document gets a number that no token has.
        documents = np.searchsorted(self.document_stops, np.arange(start, start + length), side="right")
        return documents - documents[0]

    def _recall_windows(self, stage: Stage, tokenizer: Tokenizer) -> RecallWindows | None:
        shortest = min(lengths(stage, self.block_size))
        if shortest < 2:
            raise ValueError(
                f"a window of {stage.window_positions} positions has no room for two tokens and their "
                "landmarks; make windows longer"
            )
        return RecallWindows(stage.recall, tokenizer, shortest, self.chat_format) if stage.recall_fraction > 0 else None


class TooShort(ValueError):
    """Raised for a text with fewer tokens than a window."""


def check_blocks(stages: Sequence[Stage], block_size: int) -> None:
    """Raises ValueError if the windows of a stage that trains landmarks are shorter than a block and its landmark."""
    for stage in stages:
        if stage.has_landmarks and stage.window_positions <= block_size:
            raise ValueError(
                f"a window of {stage.window_positions} positions is shorter than a block of {block_size} tokens and "
                "its landmark: make windows longer, or blocks shorter (--block-size)"
            )


def check_length(ids: np.ndarray, stages: Sequence[Stage], name: str) -> None:
    """Raises TooShort, calling the text `name`, if it is shorter than a window of one of the stages."""
    longest = max(stage.window_positions for stage in stages)
    if len(ids) < longest:
        raise TooShort(f"the {name} has {len(ids)} tokens, fewer than a window of {longest}; give more text")


def lengths(stage: Stage, block_size: int) -> list[int]:
    """Ordinary tokens in a window of `stage`, for each phase."""
    return [window_tokens(stage, block_size, phase) for phase in range(block_size)]


def window_tokens(stage: Stage, block_size: int, phase: int) -> int:
    """Ordinary tokens in a window of `stage`, all segments of one length."""
    tokens = stage.window_positions
    if stage.has_landmarks:
        tokens = tokens_that_fit(tokens, block_size, phase)
    return tokens // stage.segments * stage.segments


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
