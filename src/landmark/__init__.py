"""Landmark attention for rotary Hugging Face decoders (Mohtashami & Jaggi 2023, arXiv 2305.16300).

The public names below are imported when they are first used, so that ``import landmark`` takes milliseconds
and a command line can answer ``--help`` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landmark.contexts.context import Context
    from landmark.hf import LandmarkCache, convert, from_pretrained, load_adapter, read
    from landmark.ops.attention import landmark_attention

__version__ = "0.1.0"

__all__ = [
    "Context",
    "LandmarkCache",
    "__version__",
    "convert",
    "from_pretrained",
    "landmark_attention",
    "load_adapter",
    "read",
]

_HOME = {
    "Context": "landmark.contexts.context",
    "LandmarkCache": "landmark.hf",
    "convert": "landmark.hf",
    "from_pretrained": "landmark.hf",
    "landmark_attention": "landmark.ops.attention",
    "load_adapter": "landmark.hf",
    "read": "landmark.hf",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'landmark' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
