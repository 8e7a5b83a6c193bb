"""The model that comes with the package: 3.8 million parameters that retrieve passkeys, in minutes of a GPU.

Looking something up is learnt first, on short windows full of keys, where every window pays: under plain causal
attention until answers start to be right, then with the gates. Windows then grow and keys thin out, so that a key is
far from its question and most of a window is book. In the end the landmarks of sixteen thousand blocks of other windows
take part, as many as half a million tokens have: what tells a block from a dozen does not tell it from those.
"""

from pathlib import Path
from typing import Any

from landmark.data.recall import RecallTask
from landmark.training.plan import Plan
from landmark.training.recipe import Recipe
from landmark.training.stages import Stage
from reproduce.trainings.corpus import text_files

VOCABULARY = 4095

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
}

NEAR = RecallTask(keys=(1, 2), questions=(2, 3), answer_weight=5.0)
FAR = RecallTask(keys=(1, 5), questions=(2, 5), answer_weight=5.0)
CURRICULUM = (
    Stage(700, 192, 16, gates=False, recall_fraction=0.8, recall=NEAR),  # find out that keys repeat
    Stage(500, 192, 16, recall_fraction=0.8, recall=NEAR),  # the same through landmarks
    Stage(  # farther apart, more keys to confuse
        500, 384, 12, recall_fraction=0.6, recall=RecallTask(keys=(1, 4), questions=(2, 5), answer_weight=5.0)
    ),
    Stage(500, 512, 8, recall_fraction=0.4, recall=FAR),  # whole windows, mostly book
    # With their slots before them, as in memory, they take 512 positions too.
    Stage(600, 416, 16, attention="landmark_distractors", distractors=16384, recall_fraction=0.5, recall=FAR),
)


def shipped_model(out: Path, data: Path, *, seed: int = 0) -> Plan:
    """The training on the text files in `data`/books/train, with a tokenizer of its own in `out`/tokenizer."""
    return Plan(
        texts=text_files(data / "books" / "train"),
        validation=text_files(data / "books" / "validation"),
        out=out,
        tokenizer=str(out / "tokenizer"),
        vocabulary=VOCABULARY,
        config=MODEL,
        recipe=Recipe(CURRICULUM, learning_rate=1.5e-3, warmup_steps=100, weight_decay=0.1),
        block_size=31,
        retrieve=2,
        save_dtype="float16",
        seed=seed,
    )
