"""Models as they are before conversion: read in chunks with full attention, stretched to longer texts; greedy decoding.

Baselines of evaluations.
"""

from collections.abc import Callable, Collection
from copy import deepcopy
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from landmark.hf.config import text_config, trained_positions
from landmark.hf.loading import gguf_model, is_gguf, read_weights, with_dtype
from landmark.hf.reader import chunks, end_tokens


def load_plain(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The ordinary model in a folder, on the hub or in a GGUF file, in float32 by default, for evaluation.

    Raises ValueError where it cannot be read.
    """
    load = gguf_model if is_gguf(path) else read_weights
    return load(path, **with_dtype(options)).eval()


def stretched(model: PreTrainedModel, length: int) -> PreTrainedModel:
    """`model` with its rotary frequencies stretched to `length` positions by YaRN (Peng et al. 2023).

    The factor is `length` over the trained range, at least 1; all else is the default of transformers. Weights are
    shared with `model`. Raises ValueError for a model whose frequencies are scaled already.
    """
    config = deepcopy(model.config)
    text, trained = text_config(config), trained_positions(config)
    rope = dict(getattr(text, "rope_parameters", None) or {})
    if rope.get("rope_type") != "default":
        raise ValueError(f"YaRN stretches plain rotary positions, and those of this model are {rope or 'not rotary'}")
    text.rope_parameters = rope | {
        "rope_type": "yarn",
        "factor": max(1.0, length / trained),
        "original_max_position_embeddings": trained,
    }
    text.max_position_embeddings = max(length, trained)
    other = AutoModelForCausalLM.from_config(config, dtype=model.dtype, trust_remote_code=False)
    other.load_state_dict(model.state_dict(), assign=True)
    other.tie_weights()
    other.generation_config = model.generation_config
    return other.eval()


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor,
    chunk_size: int,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> None:
    """Reads `ids [N]` in chunks without computing logits; `options` go to every forward: a cache or a reader."""
    for chunk in chunks(ids[None], chunk_size):
        model.base_model(input_ids=chunk.to(model.device), **options)
        if progress is not None:
            progress(chunk.shape[1])


@torch.no_grad()
def decode(
    model: PreTrainedModel, ids: Tensor, count: int, *, ends: Collection[int] | None = None, **options: Any
) -> list[int]:
    """Greedy decoding of at most `count` tokens after `ids [M]`, up to one of `ends`, by default those of the model.

    `options` go to every forward: a cache or a reader, which has read all tokens before `ids`.
    """
    ends = end_tokens(model) if ends is None else ends
    new: list[int] = []
    token = ids.to(model.device)[None]
    while len(new) < count:
        token = model(input_ids=token, **options).logits[:, -1:].argmax(-1)
        new.append(int(token))
        if new[-1] in ends:
            break
    return new


def full_cache() -> DynamicCache:
    """A KV cache that keeps everything, for a model before conversion."""
    return DynamicCache()
