"""The paper's language modeling at the scale of a small computer.

Scale: 0.9 million parameters (4 layers, 4 heads, width 128) where the paper has 151 million without embeddings, 6.6
million tokens of training where it has 15.7 billion, a vocabulary of 1,024 where it has 50,257. One training takes
about 12 minutes on two cores of a CPU, less than one on a GPU. Windows, blocks, optimizer and schedule are the paper's.
The size "medium" is for GPUs: 32 million parameters (10 layers, 8 heads, width 512), 26 million tokens.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from landmark.training.plan import Plan
from reproduce.trainings import language_modeling
from reproduce.trainings.corpus import Corpus
from reproduce.trainings.language_modeling import BLOCK_SIZE, WINDOW, reach

TOKENS_PER_STEP = 8 * WINDOW  # of the size "small"
STEPS = 1600
VOCABULARY = 1024

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

MEDIUM = MODEL | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 8}
# For each size the model, the windows of a step and the number format.
SIZES: dict[str, tuple[dict[str, Any], int, str]] = {
    "small": (MODEL, 8, "float32"),
    "medium": (MEDIUM, 32, "auto"),
}

PARAMETERS = {"small": "0.9M", "medium": "32M"}

# Half of the paper's span: of so few tokens a step more than two windows must be made, or gradients are all noise.
SPAN = 1024
stage = partial(language_modeling.stage, tokens=TOKENS_PER_STEP, span=SPAN)


def small(
    corpus: Corpus,
    out: Path,
    tokenizer: Path,
    attention: str = "landmark",
    *,
    block_size: int = BLOCK_SIZE,
    steps: int = STEPS,
    seed: int = 0,
    size: str = "small",
    **changes: Any,
) -> Plan:
    """One training of a model of a size of `SIZES` on `corpus`; `changes` are settings of its `Stage`: `jumps`, ..."""
    config, windows, precision = SIZES[size]
    made = stage(attention, steps, tokens=windows * WINDOW, block_size=block_size, **changes)
    # Positions reach as far as in windows with landmarks, whatever the attention.
    return Plan(
        texts=corpus.train,
        validation=corpus.validation,
        out=out,
        tokens=tokenizer.parent / "tokens",
        tokenizer=str(tokenizer),
        config=config | {"max_position_embeddings": reach(WINDOW, block_size)},
        recipe=language_modeling.recipe(made),
        block_size=block_size,
        retrieve=2 if 5 * (block_size + 1) < WINDOW else 1,  # slots, a local block and a tail fit the trained range
        precision=precision,
        eval_every=400,
        eval_windows=32,
        seed=seed,
    )


def small_text(
    corpus: str,
    out: Path,
    data: Path,
    attention: str = "landmark",
    *,
    block_size: int = BLOCK_SIZE,
    steps: int = STEPS,
    seed: int = 0,
) -> Plan:
    """One training on the text files in `data`/`corpus`; its tokenizer and tokens serve all trainings beside `out`."""
    shared = out.parent / f"{corpus}_{VOCABULARY}"
    plan = small(
        Corpus.of(data / corpus),
        out,
        shared / "tokenizer",
        attention,
        block_size=block_size,
        steps=steps,
        seed=seed,
    )
    return replace(plan, vocabulary=VOCABULARY)


small_books = partial(small_text, "books")
small_math = partial(small_text, "math")
