"""Compatibility: everything that differs between the supported releases of transformers and torch.

Releases rename arguments and move decisions. Code that knew one name alone could read a text without its memory and
raise no error, so names are looked up on the model at hand, and every forward is checked (`StreamCall.check`).
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig
from transformers.utils import logging

# The argument of a forward that takes the cache: the first until transformers 5.23, the second from 5.24 on.
CACHE_NAMES = ("past_key_values", "cache")

# Fields of a config that change no key and no value: training, generation, a release's internals, and what the
# weights determine anyway.
_IRRELEVANT = re.compile(
    r"_.*|vocab_size|use_cache|.*_token_id|initializer_.*|init_std|.*dropout.*|.*pdrop|output_router_logits|auto_map"
    r"|router_aux_loss_coef|router_jitter_noise|pretraining_tp|tie_word_embeddings|num_logits_to_keep|tokenizer_class"
    r"|gradient_checkpointing|base_model_.*_plan|landmark"
)
# Fields that later releases added, with the values that earlier ones had built in.
_ADDED_FIELDS = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
_FULL_ROTARY = ("partial_rotary_factor", 1.0)  # of rope parameters: the default


class UnsupportedRelease(ValueError):
    """The installed transformers calls a model in a way that landmark attention does not support."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {installed()} (docs/your_model.md lists the supported ones)")


def installed() -> str:
    """The installed releases of transformers and torch, for messages."""
    return "installed are " + ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))


# Inspecting a signature takes as long as a layer of a small model. Keyed by function: forwards can be replaced.
_PARAMETERS: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


def _inspect(forward: Any) -> list[str]:
    function = getattr(forward, "__func__", forward)  # each access creates another bound method
    stands_before = getattr(function, "stands_before", None)  # a class, whose forward can be replaced
    function = function if stands_before is None else stands_before.forward
    if function not in _PARAMETERS:
        _PARAMETERS[function] = list(signature(function).parameters)
    return _PARAMETERS[function]


# torch.compile cannot trace signatures.
_parameters: Callable[[Any], list[str]] = torch.compiler.disable(_inspect)  # type: ignore[assignment]


def cache_argument(model: nn.Module) -> str:
    """The argument under which `model.forward` takes its cache; raises UnsupportedRelease if it is unknown."""
    parameters = _parameters(model.forward)
    for name in reversed(CACHE_NAMES):
        if name in parameters:
            return name
    raise UnsupportedRelease(f"{type(model).__name__}.forward takes no cache under the names {', '.join(CACHE_NAMES)}")


def cache_kwargs(model: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """Keyword arguments that pass `cache` to a forward or `generate` of `model`; None switches caching off."""
    return {"use_cache": False} if cache is None else {cache_argument(model): cache, "use_cache": True}


def rename_cache_argument(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` with the cache, given under either name, under the one that `model.forward` takes.

    Raises ValueError for two caches in one call.
    """
    given = [name for name in CACHE_NAMES if kwargs.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are the same argument: give one of them")
    others = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    return others | ({cache_argument(model): kwargs[given[0]]} if given else {})


def config_fields(config: PretrainedConfig) -> dict[str, Any]:
    """All fields of a text model's config that can change keys and values, JSON-serializable.

    The same for one saved model under every supported release: fields common to all configs are left out, and so are
    those that are None.
    """
    common = PretrainedConfig().to_dict().keys() | {"torch_dtype", "name_or_path"}
    fields = json.loads(json.dumps(config.to_dict(), default=str), parse_constant=str)  # inf as a word
    rope = fields.get("rope_parameters")
    if rope:
        # Releases before 5.20 have this field twice, some also where it is the default.
        fields.pop("partial_rotary_factor", None)
        fields["rope_parameters"] = {name: value for name, value in rope.items() if (name, value) != _FULL_ROTARY}
    return {
        name: value
        for name, value in fields.items()
        if name not in common
        and not _IRRELEVANT.fullmatch(name)
        and value is not None
        and (name, value) not in _ADDED_FIELDS.items()
    }


def holds_all_tensors(path: Path) -> bool:
    """Whether a GGUF file is seen to end behind its last tensor.

    False where a release has no parser of the header alone, and where that parser fails, be it at a kind of numbers
    that it does not know.
    """
    try:
        from transformers.integrations.gguf import GgufHeader  # type: ignore[attr-defined]

        header = GgufHeader.from_file(str(path))
        return all(
            header.data_start + tensor.offset + tensor.nbytes <= path.stat().st_size for tensor in header.tensors
        )
    except Exception:  # a damaged file can raise any
        return False


def obey_progress_bar_setting() -> None:
    """Makes the bar over a GGUF file's tensors one of transformers, which `disable_progress_bar` switches off.

    Until 5.23 it comes from tqdm itself; later releases have none.
    """
    with suppress(ImportError):
        from transformers import modeling_gguf_pytorch_utils as gguf

        if hasattr(gguf, "tqdm"):
            gguf.tqdm = logging.tqdm  # pyright: ignore[reportPrivateImportUsage]


def require(condition: Tensor, message: str) -> None:
    """Raises ValueError with `message` unless all of `condition` holds.

    On a GPU this does not wait for the device: the error comes later and is one of the device.
    """
    if condition.is_cuda:
        torch._assert_async(condition.all(), message)  # type: ignore[attr-defined]
    elif not condition.all():
        raise ValueError(message)
