"""What the paper's language-modelling trainings (section 4.1) have in common, whatever their scale."""

from typing import Any

from landmark.blocks import stream_length
from landmark.data.windows import Stage
from landmark.training.recipe import Recipe

WINDOW = 512  # ordinary tokens, whatever the attention
SPAN = 2048  # ordinary tokens over which states are carried in training, as the paper's Transformer-XL does
BLOCK_SIZE = 50

# Ordinary tokens in a window, its segments, and the blocks or keys that a query opens, for each attention. As in the
# paper, Transformer-XL carries states over eight segments of 256 tokens, and landmark attention with a recurrent window
# does, too; landmark attention with memory in training reads the window before through its landmarks.
WINDOWS = {
    "landmark": (WINDOW, 1, 1),
    "full": (WINDOW, 1, 1),
    "recurrent": (SPAN, 8, 1),
    "landmark_recurrent": (SPAN, 8, 1),
    "landmark_retrieval": (2 * WINDOW, 2, 2),
    "knn": (SPAN, 4, 32),
}


def stage(attention: str, steps: int, tokens: int, *, block_size: int = BLOCK_SIZE, **changes: Any) -> Stage:
    """`steps` of micro-batches of `tokens` ordinary tokens, for one of `landmark.data.windows.ATTENTIONS`.

    `changes` are other settings of the stage. Raises ValueError for another attention.
    """
    if attention not in WINDOWS:
        raise ValueError(f"attention is {attention!r}: choose one of {', '.join(WINDOWS)}")
    window, segments, top_k = WINDOWS[attention]
    positions = reach(window, block_size) if attention.startswith("landmark") else window
    return Stage(steps, positions, tokens // window, attention=attention, segments=segments, top_k=top_k, **changes)


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
