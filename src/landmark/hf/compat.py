"""Everything that differs between the supported releases of transformers, in one place.

Releases rename arguments and move decisions; code that knew one name would read a text without its memory and say
nothing. So the names are looked up on the model at hand, and every forward is checked (`StreamCall.check`).
"""

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import Cache, PretrainedConfig

# What a forward calls its cache: the first until transformers 5.23, the second from 5.24 on.
CACHE_NAMES = ("past_key_values", "cache")

# Of a configuration, what changes no key and no value: training, generation, what a release keeps for itself, and
# what the weights say anyway.
_NO_MATTER = re.compile(
    r"_.*|vocab_size|use_cache|.*_token_id|initializer_.*|init_std|.*dropout.*|.*pdrop|output_router_logits|auto_map"
    r"|router_aux_loss_coef|router_jitter_noise|pretraining_tp|tie_word_embeddings|num_logits_to_keep|tokenizer_class"
    r"|gradient_checkpointing|base_model_.*_plan|landmark"
)
# Fields that later releases have, as far as they say what earlier ones did without them.
_LATER_FIELDS = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
_WHOLE = ("partial_rotary_factor", 1.0)  # of rope parameters: all dimensions turn, as they do without it


class UnsupportedRelease(ValueError):
    """A forward did not go the way landmark attention needs: the installed transformers calls the model otherwise."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {installed()} (docs/releases.md lists the supported ones)")


def installed() -> str:
    """The releases in use, for messages."""
    return "installed are " + ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))


# Asking for a signature takes as long as a layer of a small model; a forward that is replaced is another key.
_KNOWN: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


def _names(forward: Any) -> list[str]:
    function = getattr(forward, "__func__", forward)  # bound methods are made anew each time
    if function not in _KNOWN:
        _KNOWN[function] = list(signature(forward).parameters)
    return _KNOWN[function]


# torch.compile cannot trace signatures.
_parameters: Callable[[Any], list[str]] = torch.compiler.disable(_names)  # type: ignore[assignment]


def cache_argument(model: nn.Module) -> str:
    """The name under which `model.forward` takes its cache; raises UnsupportedRelease if it is none that is known."""
    parameters = _parameters(model.forward)
    for name in reversed(CACHE_NAMES):
        if name in parameters:
            return name
    raise UnsupportedRelease(f"{type(model).__name__}.forward takes no cache under the names {', '.join(CACHE_NAMES)}")


def through(model: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """Keyword arguments that make a forward or `generate` of `model` read through `cache`; without one, none."""
    return {"use_cache": False} if cache is None else {cache_argument(model): cache, "use_cache": True}


def renamed_cache(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` of a call of `model` with the cache under the name that `model.forward` takes it by.

    Raises ValueError for two caches in one call.
    """
    given = [name for name in CACHE_NAMES if kwargs.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are the same argument: give one of them")
    others = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    return others | ({cache_argument(model): kwargs[given[0]]} if given else {})


def config_fields(config: PretrainedConfig) -> dict[str, Any]:
    """All fields of a text model's configuration that can change keys and values, JSON-able.

    The same for one saved model under every supported release: what all configurations have is left out, and so are
    fields without a value.
    """
    common = PretrainedConfig().to_dict().keys() | {"torch_dtype", "name_or_path"}
    fields = json.loads(json.dumps(config.to_dict(), default=str), parse_constant=str)  # inf as a word
    rope = fields.get("rope_parameters")
    if rope:
        # Releases before 5.20 said this twice, and some where it says nothing.
        fields.pop("partial_rotary_factor", None)
        fields["rope_parameters"] = {name: value for name, value in rope.items() if (name, value) != _WHOLE}
    return {
        name: value
        for name, value in fields.items()
        if name not in common
        and not _NO_MATTER.fullmatch(name)
        and value is not None
        and (name, value) not in _LATER_FIELDS.items()
    }
