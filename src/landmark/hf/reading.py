"""Reading a text into memory without asking anything of it yet."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from landmark.hf.cache import LandmarkCache


@torch.no_grad()
def read(
    model: PreTrainedModel,
    input_ids: Tensor | Sequence[int],
    cache: LandmarkCache | None = None,
    *,
    chunk_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> LandmarkCache:
    """Reads ordinary tokens `[1, N]` (or a list) into `cache`, a new one when None, and returns it.

    Goes on where the cache stands: pass only what it has not read. No logits are computed, and memory beyond the
    keys and values kept does not grow with N. `chunk_size` is in ordinary tokens, by default what fits the trained
    range; `progress` is called with the number of tokens of each chunk. To ask, call
    `model.generate(all_ids, past_key_values=cache)` with everything read and at least one new token.
    """
    cache = LandmarkCache(model.config) if cache is None else cache
    ids = torch.as_tensor(input_ids)
    ids = ids[None] if ids.dim() == 1 else ids
    fits = cache.chunk_tokens
    if chunk_size is not None and not 1 <= chunk_size <= fits:
        raise ValueError(f"chunk_size is {chunk_size}: 1 to {fits} ordinary tokens fit the trained range")
    for piece in ids.split(chunk_size or fits, dim=1):
        model.base_model(input_ids=piece.to(model.device), past_key_values=cache, use_cache=True)
        if progress is not None:
            progress(piece.shape[1])
    return cache
