"""The class of a converted model: its own, with the few methods that landmarks change."""

from functools import cache, wraps
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class LandmarkMixin:
    """What a converted model does otherwise than its own class; everything else is inherited.

    `adopt` puts this in front of the class a model has.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        # A new model made of a converted one's class knows nothing of landmarks yet: it is one of the class below.
        plain = original_class(cls)
        model = plain.__new__(plain)
        model.__init__(*args, **options)
        return model

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made in this process: others, and copies, make it again from the one below.
        _, _, *state = super().__reduce_ex__(protocol)
        return _rebuild, (original_class(type(self)),), *state

    def resize_token_embeddings(self, *args: Any, **options: Any) -> nn.Embedding:
        return super().resize_token_embeddings(*args, **options)  # type: ignore[misc]

    def set_attn_implementation(self, *args: Any, **options: Any) -> None:
        super().set_attn_implementation(*args, **options)  # type: ignore[misc]

    def set_input_embeddings(self, value: nn.Module) -> None:
        super().set_input_embeddings(value)  # type: ignore[misc]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        super().set_output_embeddings(new_embeddings)  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        super().save_pretrained(*args, **options)  # type: ignore[misc]

    def prepare_inputs_for_generation(self, *args: Any, **options: Any) -> dict[str, Any]:
        return super().prepare_inputs_for_generation(*args, **options)  # type: ignore[misc]

    def generate(self, *args: Any, **options: Any) -> Any:
        return super().generate(*args, **options)  # type: ignore[misc]


def adopt(model: PreTrainedModel) -> None:
    """Gives `model` the methods of `LandmarkMixin`; nothing happens where it has them."""
    if not isinstance(model, LandmarkMixin):
        model.__class__ = landmark_class(type(model))


@cache
def landmark_class(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`plain` with `LandmarkMixin` in front, one class for each.

    It keeps name and module: transformers looks both up, for losses, saved architectures and attention functions.
    """
    names: dict[str, Any] = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    methods = {name: _with_signature(plain, name) for name in ("generate", "prepare_inputs_for_generation")}
    return type(plain.__name__, (LandmarkMixin, plain), names | methods)


def _with_signature(plain: type[PreTrainedModel], name: str) -> Any:
    """The mixin's method under the signature of the model's own: transformers asks which arguments it takes."""
    ours = getattr(LandmarkMixin, name)

    @wraps(getattr(plain, name))
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return ours(self, *args, **options)

    return method


def original_class(adopted: type) -> type[PreTrainedModel]:
    """The class below `LandmarkMixin`."""
    bases = adopted.__mro__
    return bases[bases.index(LandmarkMixin) + 1]


def _rebuild(plain: type[PreTrainedModel]) -> Any:
    return object.__new__(landmark_class(plain))
