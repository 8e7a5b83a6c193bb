"""Which tensors Triton kernels can serve; does not import Triton."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_WIDEST_HEAD = 256
_INSTALLED = find_spec("triton") is not None  # at import, as some releases of torch.compile cannot trace find_spec


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Why no kernel can read these tensors [..., head_dim] together, None if one can.

    On a CPU kernels run in Triton's interpreter only, which TRITON_INTERPRET=1 in the environment turns on.
    """
    kinds = {(x.dtype, x.device) for x in tensors}
    dtype, device = tensors[0].dtype, tensors[0].device
    if len(kinds) > 1:
        return "reads tensors of one dtype and device, not " + ", ".join(sorted(f"{d} on {at}" for d, at in kinds))
    if dtype not in _DTYPES:
        return f"reads float32, float16 or bfloat16, not {dtype}"
    widest = max(x.shape[-1] for x in tensors)
    if widest > _WIDEST_HEAD:
        return f"serves head_dim up to {_WIDEST_HEAD}, not {widest}"
    if not _INSTALLED:
        return "needs the package triton, which is not installed (pip install triton)"
    if not _runs_on(device):
        return f"needs an NVIDIA GPU of compute capability 8.0 or newer, not {device}"
    return None


def _runs_on(device: torch.device) -> bool:
    if device.type == "cuda" and torch.version.cuda is not None:
        return torch.cuda.get_device_properties(device).major >= 8
    # As in Triton, whose own function torch.compile cannot trace.
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
