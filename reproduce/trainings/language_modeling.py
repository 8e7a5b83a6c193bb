"""Windows, schedule and optimizer of the paper's language modeling (section 4.1), at any scale."""

from typing import Any

from landmark.stream import stream_length
from landmark.training.recipe import Recipe
from landmark.training.stages import Stage

WINDOW = 512  # ordinary tokens, whatever the attention
SPAN = 2048  # ordinary tokens over which the paper's Transformer-XL carries states in training
SEGMENT = 256  # its segments
BLOCK_SIZE = 50


def windows(span: int) -> dict[str, tuple[int, int, int]]:
    """Ordinary tokens in a window, its segments, and the blocks or keys that a query opens, for each attention.

    Those that carry states from segment to segment do so over `span` tokens; landmark attention with memory in training
    reads the window before through its landmarks.
    """
    return {
        "landmark": (WINDOW, 1, 1),
        "full": (WINDOW, 1, 1),
        "recurrent": (span, span // SEGMENT, 1),
        "landmark_recurrent": (span, span // SEGMENT, 1),
        "landmark_retrieval": (2 * WINDOW, 2, 2),
        "knn": (span, span // WINDOW, 32),
    }


def stage(
    attention: str,
    steps: int,
    tokens: int,
    *,
    block_size: int = BLOCK_SIZE,
    span: int = SPAN,
    window: int | None = None,
    **changes: Any,
) -> Stage:
    """`steps` of micro-batches of `tokens` ordinary tokens, for an attention of `windows`.

    `window` replaces the ordinary tokens of its windows; `changes` are other settings of the stage. Raises ValueError
    for another attention.
    """
    known = windows(span)
    if attention not in known:
        raise ValueError(f"attention is {attention!r}: choose one of {', '.join(known)}")
    usual, segments, retrieve = known[attention]
    window = window or usual
    positions = reach(window, block_size) if attention.startswith("landmark") else window
    return Stage(
        steps, positions, tokens // window, attention=attention, segments=segments, retrieve=retrieve, **changes
    )


def recipe(stage: Stage, micro_batches: int = 1) -> Recipe:
    """The paper's optimizer and schedule: AdamW from 0.002 to 0.0004 by a cosine, after a warm-up of 2 %."""
    return Recipe(
        (stage,),
        learning_rate=2e-3,
        final_learning_rate=4e-4,
        warmup_steps=min(max(1, stage.steps // 50), stage.steps - 1),
        weight_decay=0.001,
        betas=(0.9, 0.95),
        micro_batches=micro_batches,
    )


def reach(tokens: int, block_size: int) -> int:
    """Positions that `tokens` ordinary tokens take with their landmarks, at most; blocks hold at least one token."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    return stream_length(tokens, block_size, block_size - 1)
