"""The proof, at conversion, that a model computes the same with landmark attention, and the same through a cache."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import through
from landmark.hf.rope import evaluating, rotation
from landmark.hf.settings import text_config, trained_positions

# Five tokens in blocks of two: two whole blocks and a tail. What a query reads takes (2 + 1 + 0 + 1) * 3 + 3 positions.
_TOKENS, _BLOCK, _POSITIONS = 5, 2, 15
# Of the norm of the hidden states. Other kernels, and rotary in another place, round otherwise in every layer: in
# bfloat16 the 30 layers of SmolLM2-135M end 0.12 apart. States that have nothing in common are 1.4 apart.
_TOLERANCE = {torch.float16: 0.1, torch.bfloat16: 0.5}


def hidden_states(base: nn.Module, **options: Any) -> Tensor:
    """What the base model makes of a few ordinary tokens, `[1, 5, C]`."""
    embeddings: Any = base.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(2, 2 + _TOKENS, device=embeddings.weight.device)[None] % len(embeddings.weight)
    with torch.no_grad(), evaluating(base):
        return base(input_ids=ids, **options)[0]


def check_attention(model: PreTrainedModel, untouched: Tensor, landmark_id: int) -> None:
    """Compares the model, its hooks in place, with itself before (`untouched`, by `hidden_states`) and with its cache.

    An input within one block has no gates, so it must give what the untouched model gives. An input of several blocks
    must give the same in one forward and chunk by chunk, with every block opened. Raises ValueError with the reason.
    """
    name, base = type(model).__name__, model.base_model
    config: Any = text_config(model.config)
    stored = getattr(config, "landmark", None)
    settings = {"block_size": _TOKENS + 1, "landmark_id": landmark_id, "top_k": 2, "local_blocks": 0}
    try:
        config.landmark = settings
        if not _changes_with_length(base, trained_positions(config)):
            found = hidden_states(base, use_cache=False)
            _compare(found, untouched, f"{name} gives other hidden states with landmark attention than with its own")
        config.landmark = settings | {"block_size": _BLOCK}
        if trained_positions(config) >= _POSITIONS:
            whole = hidden_states(base, use_cache=False)
            read = _read(name, base, config)
            _compare(read, whole, f"{name} reads something else through a cache than without one")
    finally:
        config.landmark = stored
        if stored is None:
            del config.landmark


def _changes_with_length(base: Any, trained: int) -> bool:
    """Whether the model itself rotates short texts otherwise than long ones; landmark attention always as long ones."""
    like = torch.empty(0, device=base.device)
    for rope in set(base.landmark_ropes):
        short, long = (rotation(base.rotary_emb, rope, _TOKENS, pinned, like) for pinned in (_TOKENS, trained))
        if not torch.equal(short.cos, long.cos):
            return True
    return False


def _read(name: str, base: Any, config: Any) -> Tensor:
    """Hidden states of chunks of one block; ValueError for a model that breaks off in it, however it does."""
    try:
        return hidden_states(base, **through(base, LandmarkCache(config, chunk_size=_BLOCK)))
    except Exception as error:
        raise ValueError(f"{name} cannot be read through a cache ({type(error).__name__}: {error})") from error


def _compare(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not error <= _TOLERANCE.get(found.dtype, 1e-3):
        raise ValueError(f"{what} (relative difference {error:.2g}): this model is not supported")
