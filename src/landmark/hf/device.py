"""Where models go that nobody has placed, and what is asked of tensors without waiting for their device."""

from typing import Any

import torch
from torch import Tensor


def placed(model: Any) -> Any:
    """The model on the GPU that torch is set to, where it sees one; on the CPU otherwise."""
    return model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def demand(condition: Tensor, message: str) -> None:
    """Raises ValueError with `message` unless all of `condition` holds.

    On a GPU, which this does not wait for, the error comes later and is one of the device.
    """
    if condition.is_cuda:
        torch._assert_async(condition.all(), message)  # type: ignore[attr-defined]
    elif not condition.all():
        raise ValueError(message)
