"""What full attention over a text would have cost, beside what reading it through memory does."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from landmark.evaluation.reading import Reading
from landmark.hf.settings import text_config


@dataclass(frozen=True)
class Costs:
    """Bytes of keys and values at the end of a text, query-key scores on the way; all layers and heads."""

    kv_bytes: int
    scores: int


def full_attention(config: Any, tokens: int, bytes_per_number: int) -> Costs:
    """Costs of plain causal attention: token i scores i keys, every key and value stays."""
    config = text_config(config)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = config.num_hidden_layers
    kv_bytes = 2 * layers * kv_heads * head_dim * bytes_per_number * tokens
    return Costs(kv_bytes, layers * heads * (tokens * (tokens + 1) // 2))


def reading_scores(config: Any, reading: Reading, tokens: int) -> int:
    """Scores computed by reading through memory: all landmarks in memory, and the ordinary keys attended to.

    Landmarks in the local window are left out, one in `block_size + 1` local keys.
    """
    config = text_config(config)
    scored = reading.attended_keys(tokens) + reading.blocks_in_memory(tokens)
    return config.num_hidden_layers * config.num_attention_heads * int(scored.astype(np.int64).sum())
