"""Answering after reading: `generate()` with the caller's settings alone, whatever the model has stored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from landmark.hf.cache import LandmarkCache
from landmark.hf.compat import cache_argument


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
