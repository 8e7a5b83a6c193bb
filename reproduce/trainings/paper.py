"""The paper's language modeling at full size (section 4.1), for GPUs.

Scale: 151 million parameters without embeddings (12 layers, 8 heads, width 1,024), 240,000 steps of 128 windows of 512
tokens: 15.7 billion tokens. PG-19 has 28,602 books for training (11 GB of text), arXiv math some 10 GB.
"""

from functools import partial
from pathlib import Path
from typing import Any

from landmark.training.plan import Plan
from reproduce.trainings import language_modeling
from reproduce.trainings.language_modeling import BLOCK_SIZE, WINDOW, reach

STEPS = 240_000
TOKENS_PER_MICRO_BATCH = 16 * WINDOW
MICRO_BATCHES = 8
TOKENIZER = "openai-community/gpt2"

# A GPT-2 with rotary positions over the whole head, so attention and feed-forward come one after the other.
MODEL: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 50_257,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    "use_parallel_residual": False,
    "tie_word_embeddings": True,
}


def paper(
    corpus: str,
    out: Path,
    attention: str = "landmark",
    *,
    block_size: int = BLOCK_SIZE,
    steps: int = STEPS,
    seed: int = 0,
) -> Plan:
    """One training on a corpus of `landmark.data.corpora`; its tokens serve all trainings beside `out`."""
    stage = language_modeling.stage(attention, steps, TOKENS_PER_MICRO_BATCH, block_size=block_size)
    return Plan(
        texts=(f"corpus:{corpus}:train",),
        validation=(f"corpus:{corpus}:validation",),
        out=out,
        tokens=out.parent / f"{corpus}_tokens",
        tokenizer=TOKENIZER,
        config=MODEL | {"max_position_embeddings": reach(WINDOW, block_size)},
        recipe=language_modeling.recipe(stage, MICRO_BATCHES),
        block_size=block_size,
        retrieve=2,
        precision="bfloat16",
        eval_every=5000,
        save_every=1000,
        eval_windows=256,
        seed=seed,
    )


paper_pg19 = partial(paper, "pg19")
paper_arxiv = partial(paper, "arxiv_math")
