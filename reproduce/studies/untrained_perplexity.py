"""Perplexity of a pretrained model right after conversion, before any training with landmarks."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

import landmark
from landmark.data.text import read_text
from landmark.hf.compat import cache_kwargs
from landmark.hf.loading import read_tokenizer
from landmark.hf.plain import load_plain
from landmark.hf.tokenizer import encode
from reproduce.studies.options import UntrainedOptions


def run(options: UntrainedOptions) -> int:
    """Prints the three perplexities."""
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # that the model was not trained with landmarks is what is measured here
    text = read_text(options.text)
    ids = encode(read_tokenizer(options.model), text).ids[: options.tokens]
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens of {options.text} predict nothing: give a text and tokens of 2 or more")
    windows = list(ids[None].split(options.window, 1))
    model = load_plain(options.model)
    print("pretrained", perplexity(windows, lambda ids: _logits(model, ids)), flush=True)
    landmark.convert(model)
    print("converted", perplexity(windows, lambda ids: _logits(model, ids)), flush=True)
    print("converted, through memory", perplexity(windows, lambda ids: _logits_through_memory(model, ids)))
    return 0


@torch.no_grad()
def perplexity(windows: list[Tensor], logits_of: Callable[[Tensor], Tensor]) -> float:
    """Perplexity of all tokens but the first of each window `[1, T]`."""
    losses = [
        torch.nn.functional.cross_entropy(logits_of(window)[0, :-1].float(), window[0, 1:], reduction="none")
        for window in windows
    ]
    return math.exp(torch.cat(losses).mean())


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def _logits_through_memory(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, **cache_kwargs(model, landmark.LandmarkCache(model.config))).logits
