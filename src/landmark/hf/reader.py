"""Prefill and decoding: `read` prefills a cache with a text, `answer` decodes tokens that continue it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_argument, cache_kwargs
from landmark.limits import TEMPERATURES, is_whole


@torch.no_grad()
def read(
    model: PreTrainedModel,
    input_ids: Tensor | Sequence[int],
    cache: LandmarkCache | None = None,
    *,
    chunk_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> LandmarkCache:
    """Chunked prefill: reads ordinary tokens `[1, N]`, or a list of N, into `cache` and returns the cache.

    Continues where the cache ends: pass only tokens it has not read. No logits are computed, and memory beyond the KV
    cache does not grow with N. Afterwards, `model.generate(question_ids, past_key_values=cache.fork())` decodes an
    answer; pass it the new tokens alone.

    Args:
        model: a converted model.
        cache: a new `LandmarkCache(model.config)` when None.
        chunk_size: ordinary tokens per forward; by default that of the cache, which it may not exceed. A new cache is
            made to fit it.
        progress: called with the number of tokens of each chunk.

    Raises ValueError for a `chunk_size` that does not fit, and for `input_ids` that are no whole numbers `[1, N]`.
    """
    if cache is None:
        cache = LandmarkCache(model.config)
        if isinstance(chunk_size, int) and chunk_size > cache.chunk_tokens:
            cache = LandmarkCache(model.config, chunk_size=chunk_size)
    ids = torch.as_tensor(input_ids)
    ids = ids[None] if ids.dim() == 1 else ids
    if not ids.numel():
        return cache
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"input_ids are {ids.dtype} {list(ids.shape)}: give whole numbers [1, N], one text")
    longest = cache.chunk_tokens if chunk_size is None else chunk_size
    if not is_whole(longest, 1, cache.chunk_tokens):
        raise ValueError(
            f"chunk_size is {chunk_size!r}: this cache takes 1 to {cache.chunk_tokens} ordinary tokens; give larger"
            " numbers to LandmarkCache(chunk_size=...), which checks whether they fit the trained range"
        )
    for chunk in chunks(ids, lambda: min(longest, cache.next_chunk)):
        with cache.in_forward():
            model.base_model(input_ids=chunk.to(model.device), **cache_kwargs(model.base_model, cache))
        if progress is not None:
            progress(chunk.shape[1])
    return cache


def chunks(ids: Tensor, size: int | Callable[[], int]) -> Iterator[Tensor]:
    """Cuts `ids [B, N]` into consecutive chunks of `size` tokens, the last one shorter.

    A function is called for the size of each chunk when the one before has been read. Raises ValueError for sizes below
    1.
    """
    start = 0
    while start < ids.shape[1]:
        stop = start + (size if isinstance(size, int) else size())
        if stop <= start:
            raise ValueError(f"a chunk has {stop - start} tokens: give 1 or more")
        yield ids[:, start:stop]
        start = stop


# Decoding: `generate()` with the caller's settings alone, whatever the model has stored.


def answer(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: LandmarkCache | None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    streamer: TextStreamer | None = None,
    end: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[int]:
    """Decodes at most `max_new_tokens` ordinary tokens that continue `input_ids [N]`, N > 0, and returns them.

    Greedy decoding at `temperature` 0, sampling above. `input_ids` are the tokens that `cache` has not read yet; with
    `cache` None every step computes the attention of training over all tokens. An answer ends with a token that the
    model's generation settings name, or with `end`, or when `stop`, which is called after each token, returns True.
    Raises ValueError for a temperature other than 0 or 0.001 to 1000, and for `max_new_tokens` below 1.
    """
    TEMPERATURES.check("temperature", temperature)
    if not is_whole(max_new_tokens, 1):
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}: give 1 or more, a whole number")
    ends = end_tokens(model, end)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=cache is not None,
    )
    ids = input_ids.to(model.device)[None]
    if cache is not None:
        cache.restart_length()
    reading = {} if cache is None else {cache_argument(model): cache}
    with torch.no_grad(), _without_stored_settings(model):
        out = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=streamer,
            stopping_criteria=None if stop is None else StoppingCriteriaList([_Stop(stop)]),
            **reading,
        )
    return out[0, len(input_ids) :].tolist()


def end_tokens(model: PreTrainedModel, end: int | None = None) -> list[int]:
    """The tokens that end an answer: those of the model's generation settings, and `end`."""
    stored = model.generation_config
    named = stored.eos_token_id if stored is not None else None
    ends = [*(named if isinstance(named, list) else [named]), end]
    return list(dict.fromkeys(token for token in ends if token is not None))


class _Stop(StoppingCriteria):
    """Ends every row of a batch once `asked` returns True."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        return torch.full((len(input_ids),), self.asked(), device=input_ids.device)


@contextmanager
def _without_stored_settings(model: PreTrainedModel) -> Iterator[None]:
    """The model without its generation settings, with which transformers would fill in what is left open here."""
    stored: Any = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = stored


class TextTo(TextStreamer):
    """Streamer that passes decoded text to `write`, word by word, without the prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)
