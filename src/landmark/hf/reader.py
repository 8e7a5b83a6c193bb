"""Reading a text into memory without asking anything of it yet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_argument, cache_kwargs


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
        model.base_model(input_ids=piece.to(model.device), **cache_kwargs(model.base_model, cache))
        if progress is not None:
            progress(piece.shape[1])
    return cache


# Answering after reading: `generate()` with the caller's settings alone, whatever the model has stored.


def answer(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: LandmarkCache | None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    streamer: TextStreamer | None = None,
) -> list[int]:
    """Ordinary tokens that continue `input_ids [N]`, most likely ones, or sampled at a `temperature` above 0.

    `input_ids` are what `cache` has not read yet, one token or more, and go on where it stands; without one every step
    is the attention of training over all of them. Raises ValueError for a negative temperature and for less than one
    token to generate.
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}: give 0 for the most likely tokens, or more to sample")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: give 1 or more")
    stored = model.generation_config
    end = stored.eos_token_id if stored is not None else None
    ends = end if isinstance(end, list) else [end]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=end,
        pad_token_id=ends[0] if ends[0] is not None else 0,
        use_cache=cache is not None,
    )
    ids = input_ids.to(model.device)[None]
    if cache is not None:
        cache.count_anew()
    reading = {} if cache is None else {cache_argument(model): cache}
    with torch.no_grad(), _settings_of_caller(model):
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer, **reading
        )
    return out[0, len(input_ids) :].tolist()


@contextmanager
def _settings_of_caller(model: PreTrainedModel) -> Iterator[None]:
    """The model without stored settings of generation: transformers fills in whatever the caller left open."""
    stored: Any = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = stored


class TextTo(TextStreamer):
    """Hands the text of generated tokens to `write`, word by word, without the prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)
