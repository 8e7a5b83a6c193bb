"""Classes made in this process: that of a module, with a mixin of ours in front.

They have the name and module of the class behind, which transformers looks up for losses, saved architectures and
attention. Copies and other processes make them again.
"""

from functools import cache, wraps
from typing import Any

from torch import nn


@cache
def class_in_front(mixin: type, plain: type[nn.Module]) -> Any:
    """The subclass of `plain` with `mixin` in front, created once for each class.

    The methods that `mixin.SIGNED` names have the signatures of the plain ones, which transformers inspects.
    """
    names: dict[str, Any] = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    signed = {name: _with_signature(mixin, plain, name) for name in getattr(mixin, "SIGNED", ())}
    return type(plain.__name__, (mixin, plain), names | signed)


def class_behind(mixin: type, made: type) -> Any:
    """The class that `mixin` stands in front of, in the class `made` or a subclass."""
    bases = made.__mro__
    return bases[bases.index(mixin) + 1]


def put_in_front(mixin: type, module: nn.Module) -> None:
    """Makes the class of `module` one with `mixin` in front, unless it is one."""
    if not isinstance(module, mixin):
        module.__class__ = class_in_front(mixin, type(module))


def reduced(mixin: type, module: Any, usual: str | tuple[Any, ...]) -> tuple[Any, ...]:
    """What `module.__reduce_ex__` returns: `usual`, that of the class behind, but that the class is made again."""
    _, _, *state = usual
    return _rebuild, (mixin, class_behind(mixin, type(module))), *state


def _rebuild(mixin: type, plain: type[nn.Module]) -> Any:
    return object.__new__(class_in_front(mixin, plain))


def _with_signature(mixin: type, plain: type[nn.Module], name: str) -> Any:
    ours = getattr(mixin, name)

    @wraps(getattr(plain, name))
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return ours(self, *args, **options)

    method.stands_before = plain  # type: ignore[attr-defined]
    return method
