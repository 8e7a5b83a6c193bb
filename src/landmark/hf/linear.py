"""Linear layers of converted models: products with few rows on a CPU, as in decoding, by compiled loops."""

from torch import Tensor, nn

from landmark.ops.few_rows import few_rows_linear, serves_rows


class FewRowsLinear(nn.Linear):
    """A linear layer whose products with few rows on a CPU are those of `few_rows_linear`; all others are PyTorch's."""

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Numbers `[N,K]`, their scales, and the bias `[N]`, as `landmark.ops.few_rows.weights_of` takes them."""
        return self.weight, None, self.bias

    def forward(self, input: Tensor) -> Tensor:
        if serves_rows(input, self.weight):
            return few_rows_linear(input, *self.parts)
        return super().forward(input)


def serve_few_rows(model: nn.Module) -> None:
    """Makes every plain linear layer of `model` a `FewRowsLinear`; parameters, names and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
