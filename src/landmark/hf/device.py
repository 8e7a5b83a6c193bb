"""Where models go that nobody has placed."""

from typing import Any

import torch


def placed(model: Any) -> Any:
    """The model on the GPU that torch is set to, where it sees one; on the CPU otherwise."""
    return model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
