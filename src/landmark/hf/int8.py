"""Linear layers with weights in 8 bits: a step of decoding reads a quarter of the bytes of float32.

Each row of a weight matrix is cut into groups of up to 256 numbers, rounded to whole numbers from -127 to 127 times a
scale of the group. Products with few rows on a CPU read them as they lie; with many rows the time goes to the product,
and the weights are made whole for it. Embeddings, which are looked up and not multiplied, norms and everything else
stay what they are.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel

from landmark.ops.few_rows import few_rows_linear, serves_rows
from landmark.store.int8 import quantized

_GROUPS = (256, 192, 128, 64)  # numbers of a group; with smaller ones a product takes longer


class Int8Linear(nn.Module):
    """A linear layer of `numbers`, int8 `[N,K]`, times `scales [N,G]` in float32; the bias `[N]` is None or plain."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        width = linear.in_features
        size = next((size for size in _GROUPS if width % size == 0), width)
        groups = linear.weight.detach().float().unflatten(1, (-1, size))
        numbers, scales = quantized(groups, -1)
        self.register_buffer("numbers", numbers.flatten(1))
        self.register_buffer("scales", scales.squeeze(-1))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.train(False)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Numbers, scales and bias, as `landmark.ops.few_rows.weights_of` takes them."""
        return self.numbers, self.scales, self.bias  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        numbers, scales, bias = self.parts
        if serves_rows(input, numbers):
            return few_rows_linear(input, numbers, scales, bias)
        weight = (numbers.unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)
        return nn.functional.linear(input, weight.to(input.dtype), bias)

    def train(self, mode: bool = True) -> "Int8Linear":
        if mode:
            raise ValueError("weights in 8 bits cannot be trained: load the model without weights='int8'")
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def with_weights(model: PreTrainedModel, weights: str | None) -> PreTrainedModel:
    """`model` with the weights of its linear layers, the head's too, in place: as they are (None), or "int8".

    Raises ValueError for any other word, and for a model on another device than the CPU, where nothing would be gained.
    """
    check_weights(weights)
    if weights is None:
        return model
    if model.device.type != "cpu":
        raise ValueError(f"weights='int8' is for decoding on a CPU, and the model is on {model.device}: leave it out")
    model.eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return model


def check_weights(weights: str | None) -> None:
    """Raises ValueError for a word that names no kind of weights."""
    if weights not in (None, "int8"):
        raise ValueError(f"weights is {weights!r}: give 'int8', or leave it out for the weights as they are")


def in_8_bits(model: nn.Module) -> bool:
    """Whether weights of `model` are in 8 bits."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def refuse_8_bits(model: nn.Module, what: str) -> None:
    """Raises ValueError, with `what` cannot be done, for a model whose weights are in 8 bits."""
    if in_8_bits(model):
        raise ValueError(f"{what}, for its weights were rounded to 8 bits: load it without weights='int8' for that")
