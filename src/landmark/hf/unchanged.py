"""Whether a module is still what it was when something was made of it: loops over its weights, or a captured graph."""

from itertools import repeat
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from landmark.hf.hooks import attention_pre_hook

_FORWARD = attrgetter("forward")
# Hooks of all modules of the process: what calls fewer modules would call fewer of them.
GLOBAL_HOOKS: list[Any] = [torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks]
_RECORDING = "transformers.utils.output_capturing"


class Unchanged:
    """The parts of `root` as they are now: modules, their forwards, tensors and how these lie, and numbers of parts.

    Writing to weights in place changes none of them.
    """

    def __init__(self, root: nn.Module) -> None:
        modules = [module for module in root.modules() if module is not root]
        found = [
            (owner, name, part)
            for module in (root, *modules)
            for owner in (module._modules, module._parameters, module._buffers)
            for name, part in owner.items()
        ]
        # The scale of attention, and what norms add.
        attributes = [(vars(module), *item) for module in (root, *modules) for item in vars(module).items()]
        found += [(owner, name, value) for owner, name, value in attributes if isinstance(value, float)]
        self._owners, self._names, self._values = map(list, zip(*found, strict=True))
        self._tensors = [part for part in self._values if isinstance(part, Tensor)]
        self._lie = self._lying()
        self._modules = modules
        self._behind = [kind for kind in type(root).__mro__ if "forward" in vars(kind)]  # one may have another in front
        self._forwards = self._called()
        self._hooked = any(map(has_hooks, modules))
        others = [module for module in modules if not _attends(module)]
        self._empty = [hooks for module in others for hooks in _hooks_of(module)] + GLOBAL_HOOKS
        self._hooks = [hooks for module in modules if _attends(module) for hooks in _hooks_of(module)]
        self._numbers = list(map(list, self._hooks))  # of hooks: PyTorch gives none twice
        self._contents = [vars(module) for module in modules]

    def current(self) -> bool:
        """Whether that is so, and no part but `root` has hooks, as `has_hooks` counts them, or a forward of its own."""
        # Every layer of every step asks: loops of C alone.
        if not all(map(is_, map(dict.get, self._owners, self._names), self._values)):
            return False
        moved = self._lying() != self._lie or self._called() != self._forwards
        hooked = self._hooked or any(self._empty) or list(map(list, self._hooks)) != self._numbers
        return not (moved or hooked or any(map(dict.__contains__, self._contents, repeat("forward"))))

    def _called(self) -> list[Any]:
        """The forwards of classes, which are looked up anew: a module may get another class, and a class a forward."""
        return [*map(_FORWARD, map(type, self._modules)), *map(_FORWARD, self._behind)]

    def _lying(self) -> list[Any]:
        """Addresses, sizes and strides: a weight may be transposed where it lies."""
        return [
            *map(Tensor.data_ptr, self._tensors),
            *map(Tensor.numel, self._tensors),
            *map(Tensor.stride, self._tensors),
        ]


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has a hook other than that of conversion and those with which transformers records attentions.

    The latter stay once hidden states were asked for, and attentions can never be: conversion refuses that.
    """
    if not _attends(module):
        return any(_hooks_of(module))
    return any(getattr(hook, "__module__", None) != _RECORDING for hook in module._forward_hooks.values())


def _hooks_of(module: nn.Module) -> list[Any]:
    """What holds the hooks of a module."""
    return [module._forward_hooks, module._forward_pre_hooks]


def _attends(module: nn.Module) -> bool:
    """Whether the one hook before a module is that of conversion, as it is before attention."""
    return list(module._forward_pre_hooks.values()) == [attention_pre_hook]
