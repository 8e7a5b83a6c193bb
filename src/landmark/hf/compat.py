"""Everything that differs between the supported releases of transformers, in one place.

Releases rename arguments and move decisions; code that knew one name would read a text without its memory and say
nothing. So the names are looked up on the model at hand, and what is in use is checked in every forward (hf/calls.py).
"""

from importlib.metadata import version
from inspect import signature
from typing import Any

from torch import nn
from transformers import Cache

# What a forward calls its cache: the first until transformers 5.23, the second from 5.24 on.
CACHE_NAMES = ("past_key_values", "cache")


class UnsupportedRelease(RuntimeError):
    """A forward did not go the way landmark attention needs: the installed transformers calls the model otherwise."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {installed()} (docs/releases.md lists the supported ones)")


def installed() -> str:
    """The releases in use, for messages."""
    return "installed are " + ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))


def cache_argument(model: nn.Module) -> str:
    """The name under which `model.forward` takes its cache; raises UnsupportedRelease if it is none that is known."""
    parameters = signature(model.forward).parameters
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
