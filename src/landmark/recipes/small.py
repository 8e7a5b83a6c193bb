"""The paper's language-modelling experiments at the scale of a small computer.

Scale: 0.9 million weights (4 layers, 4 heads, width 128) where the paper has 151 million without embeddings, 6.6 million
tokens of training where it has 15.7 billion, a vocabulary of 1,024 where it has 50,257. One training takes about 12
minutes on two cores of a CPU. Windows, blocks, optimizer and schedule are the paper's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmark.blocks import stream_length
from landmark.data.windows import Stage
from landmark.training.plan import Plan
from landmark.training.recipe import Recipe

WINDOW = 512  # ordinary tokens, whatever the attention
TOKENS_PER_STEP = 8 * WINDOW
STEPS = 1600
VOCABULARY = 1024
BLOCK_SIZE = 50
SPAN = 2048  # ordinary tokens over which states are carried in training, as the paper's Transformer-XL does

MODEL: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Corpus:
    """Text files of training, validation and test."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, folder: str | Path) -> "Corpus":
        """The files of `folder`/train, validation and test; raises ValueError where one of them has none."""
        folder = Path(folder)
        parts = {}
        for part in ("train", "validation", "test"):
            parts[part] = tuple(str(path) for path in sorted((folder / part).glob("*")) if path.is_file())
            if not parts[part]:
                raise ValueError(f"{folder / part} holds no text files: put some there, or name another folder")
        return cls(folder.name, **parts)


def stage(attention: str, steps: int, *, block_size: int = BLOCK_SIZE, **changes: Any) -> Stage:
    """`steps` of as many tokens each, for one of `landmark.data.windows.ATTENTIONS`.

    Transformer-XL carries states over eight segments of 256 tokens, as in the paper, and so does landmark attention
    with a recurrent window; landmark attention with memory in training reads the window before through its landmarks.
    """
    spans, segments, top_k = {
        "landmark": (WINDOW, 1, 1),
        "full": (WINDOW, 1, 1),
        "recurrent": (SPAN, 8, 1),
        "landmark_recurrent": (SPAN, 8, 1),
        "landmark_retrieval": (2 * WINDOW, 2, 2),
        "knn": (SPAN, 4, 32),
    }[attention]
    landmarks = attention.startswith("landmark")
    positions = stream_length(spans, block_size, block_size - 1) if landmarks else spans
    batch_size = TOKENS_PER_STEP // spans
    return Stage(steps, positions, batch_size, attention=attention, segments=segments, top_k=top_k, **changes)


def small(
    corpus: Corpus,
    out: Path,
    tokenizer: Path,
    attention: str = "landmark",
    *,
    block_size: int = BLOCK_SIZE,
    steps: int = STEPS,
    seed: int = 0,
    **changes: Any,
) -> Plan:
    """One training on `corpus`; `changes` are settings of its `Stage`, such as `jumps` or `block_dropout`."""
    recipe = Recipe(
        (stage(attention, steps, block_size=block_size, **changes),),
        learning_rate=2e-3,
        final_learning_rate=4e-4,
        warmup_steps=max(1, steps // 50),
        weight_decay=0.001,
        betas=(0.9, 0.95),
    )
    # As far as a window of 512 tokens reaches with its landmarks, in every training the same.
    positions = stream_length(WINDOW, BLOCK_SIZE, BLOCK_SIZE - 1)
    return Plan(
        texts=corpus.train,
        validation=corpus.validation,
        out=out,
        tokens=tokenizer.parent / "tokens",
        tokenizer=str(tokenizer),
        config=MODEL | {"max_position_embeddings": positions},
        recipe=recipe,
        block_size=block_size,
        top_k=2,
        precision="float32",
        eval_every=400,
        eval_windows=32,
        seed=seed,
    )
