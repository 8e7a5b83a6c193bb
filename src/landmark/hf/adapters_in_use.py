"""Adapters in a model: which of them are active, and how, read from what PEFT puts into it, without importing it."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

# Attributes under which PEFT keeps the module that it wrapped.
_WRAPPED = {"base_layer", "original_module", "token_adapter"}


class _Container(NamedTuple):
    """One attribute of a tuned module that holds every adapter's part: weights, or numbers such as the scaling."""

    module: Any
    content: Mapping[str, Any]  # by the adapter's name


class Adapters:
    """The adapters in a model, as they are when this object is made.

    Adapters that are not active, or disabled, compute nothing; merged ones are part of the weights. Names of adapters
    do not matter.
    """

    def __init__(self, model: nn.Module) -> None:
        # A module around another tuned one comes first and has the same containers: the inner one overwrites it.
        self._containers = {path: _Container(m, content) for path, m, content in _containers(model)}

    def state(self) -> list[str]:
        """One line for each setting in use, weights excluded, in a fixed order; empty without active adapters."""
        lines = []
        for path, container in self._containers.items():
            if container.module.merged_adapters and container.module.disable_adapters:
                lines.append(f"{_plain_name(path)}: merged, and disabled all the same")
            for position, adapter in enumerate(_in_use(container.module)):
                value = container.content.get(adapter)
                if _is_plain(value) and value is not False:
                    lines.append(f"{_plain_name(path)} {position}: {value!r}")
        return sorted(lines)

    def mark(self) -> tuple[Any, ...]:
        """Changes when the adapters in use or their scaling change."""
        modules = {path: container.module for path, container in self._containers.items()}
        return (*self.state(), *((path, *_in_use(module), *module.merged_adapters) for path, module in modules.items()))

    def split(self, weights: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Splits `weights` into the model's own, under their names without adapters, and those of active adapters."""
        own, adapted = {}, {}
        for name, value in weights.items():
            path, adapter, rest = self._owner(name)
            if path is None:
                own[_plain_name(name)] = value
            elif adapter in (used := _in_use(self._containers[path].module)):
                adapted[f"{_plain_name(path)} {used.index(adapter)} {rest}"] = value
        return own, adapted

    def fingerprint(self, adapted: Mapping[str, str]) -> str:
        """Fingerprint of the adapters in use, "none" without any; `adapted` are their weights, from `split`."""
        lines = self.state() + [f"{name}: {value}" for name, value in sorted(adapted.items())]
        if not lines:
            return "none"
        count = max((len(_in_use(container.module)) for container in self._containers.values()), default=0)
        digest = hashlib.sha256("\n".join(lines).encode())
        return f"{count} active, {digest.hexdigest()}"

    def _owner(self, name: str) -> tuple[str | None, str, str]:
        """Container, adapter and rest of the name of a weight; container None for the model's own."""
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            path = ".".join(parts[:cut])
            if path in self._containers:
                return path, parts[cut], ".".join(parts[cut + 1 :])
        return None, "", ""


def _plain_name(name: str) -> str:
    """The name of a module or weight in the model without adapters."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _containers(model: nn.Module) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    for path, module in model.named_modules():
        if not hasattr(type(module), "adapter_layer_names"):  # looking at the class is fast
            continue
        tuned: Any = module
        for name in (*tuned.adapter_layer_names, *tuned.other_param_names):
            content: Any = tuned
            for part in name.split("."):
                content = getattr(content, part, None)
            if hasattr(content, "keys"):
                yield f"{path}.{name}", tuned, dict(content.items())


def _in_use(module: Any) -> list[str]:
    """The adapters that a tuned module applies."""
    return [] if module.disable_adapters or module.merged_adapters else list(module.active_adapters)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)
