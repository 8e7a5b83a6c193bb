"""Which of a model's adapters are in use, and how: what PEFT puts into a model, told without importing it."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

NONE = "none"
# What stands between a module and the one that PEFT put in its place.
_WRAPPED = {"base_layer", "original_module", "token_adapter"}


class _Container(NamedTuple):
    """What one tuned module has of every adapter under one name: weights, or numbers such as the scaling."""

    module: Any
    content: Mapping[str, Any]  # by the adapter's name


class Adapters:
    """The adapters of `model` as they are now.

    Adapters that are not active compute nothing, and nor do those of a module that are disabled; merged ones are part
    of the weights. What an adapter is called does not matter.
    """

    def __init__(self, model: nn.Module) -> None:
        # A module around another tuned one comes first and names the same containers: the inner one knows best.
        self._containers = {path: _Container(m, content) for path, m, content in _containers(model)}

    def state(self) -> list[str]:
        """A line for all that is in use except weights, in a fixed order; none without active adapters."""
        lines = []
        for path, container in self._containers.items():
            if container.module.merged_adapters and container.module.disable_adapters:
                lines.append(f"{plain_name(path)}: merged, and disabled all the same")
            for place, adapter in enumerate(_in_use(container.module)):
                value = container.content.get(adapter)
                if _is_plain(value) and value is not False:
                    lines.append(f"{plain_name(path)} {place}: {value!r}")
        return sorted(lines)

    def mark(self) -> tuple[Any, ...]:
        """Changes when other adapters come into use, and when their scaling does."""
        modules = {path: container.module for path, container in self._containers.items()}
        return (*self.state(), *((path, *_in_use(module), *module.merged_adapters) for path, module in modules.items()))

    def split(self, weights: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """The model's own of `weights`, by the names that they have without adapters, and those of active adapters."""
        own, adapted = {}, {}
        for name, value in weights.items():
            path, adapter, rest = self._owner(name)
            if path is None:
                own[plain_name(name)] = value
            elif adapter in (used := _in_use(self._containers[path].module)):
                adapted[f"{plain_name(path)} {used.index(adapter)} {rest}"] = value
        return own, adapted

    def fingerprint(self, adapted: Mapping[str, str]) -> str:
        """What tells adapters in use from others, "none" without any; `adapted` are their weights, as of `split`."""
        lines = self.state() + [f"{name}: {value}" for name, value in sorted(adapted.items())]
        if not lines:
            return NONE
        count = max((len(_in_use(container.module)) for container in self._containers.values()), default=0)
        digest = hashlib.sha256("\n".join(lines).encode())
        return f"{count} active, {digest.hexdigest()}"

    def _owner(self, name: str) -> tuple[str | None, str, str]:
        """Container, adapter and the rest of the name of a weight; no container for the model's own."""
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            path = ".".join(parts[:cut])
            if path in self._containers:
                return path, parts[cut], ".".join(parts[cut + 1 :])
        return None, "", ""


def plain_name(name: str) -> str:
    """The name that a module or weight has in the model without adapters."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _containers(model: nn.Module) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    for path, module in model.named_modules():
        if not hasattr(type(module), "adapter_layer_names"):  # asking the class is quick
            continue
        tuned: Any = module
        for name in (*tuned.adapter_layer_names, *tuned.other_param_names):
            content: Any = tuned
            for part in name.split("."):
                content = getattr(content, part, None)
            if hasattr(content, "keys"):
                yield f"{path}.{name}", tuned, dict(content.items())


def _in_use(module: Any) -> list[str]:
    """The adapters that a tuned module adds to what it computes."""
    return [] if module.disable_adapters or module.merged_adapters else list(module.active_adapters)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)
