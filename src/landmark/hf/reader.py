"""Reading a text into memory without asking anything of it yet."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import through


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
    keys and values kept does not grow with N. `chunk_size` is in ordinary tokens, by default that of the cache,
    which it may not exceed; a new cache is made to take it. `progress` is called with the number of tokens of each
    chunk. To ask, call `model.generate(question_ids, past_key_values=cache.fork())` with what is new alone.

    Raises ValueError for a `chunk_size` that does not fit.
    """
    if cache is None:
        cache = LandmarkCache(model.config)
        if chunk_size is not None and chunk_size > cache.chunk_tokens:
            cache = LandmarkCache(model.config, chunk_size=chunk_size)
    ids = torch.as_tensor(input_ids)
    ids = ids[None] if ids.dim() == 1 else ids
    longest = cache.chunk_tokens if chunk_size is None else chunk_size
    if not 1 <= longest <= cache.chunk_tokens:
        raise ValueError(
            f"chunk_size is {chunk_size}: this cache takes 1 to {cache.chunk_tokens} ordinary tokens; give longer ones"
            " to LandmarkCache(chunk_size=...), which checks whether they fit the trained range"
        )
    while ids.shape[1]:
        fits = min(longest, cache.next_chunk)
        piece, ids = ids[:, :fits], ids[:, fits:]
        model.base_model(input_ids=piece.to(model.device), **through(model.base_model, cache))
        if progress is not None:
            progress(piece.shape[1])
    return cache
