"""Landmark attention for rotary Hugging Face decoders (Mohtashami & Jaggi 2023, arXiv 2305.16300).

Everything public is exported here; no other module is part of the API. Names are imported on first use, so that `import
landmark` takes milliseconds and a command line answers `--help` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landmark.assets import adapted_path, adapter_path, book_path, model_path
    from landmark.contexts.chat import Chat
    from landmark.contexts.collection import Collection
    from landmark.contexts.collection_manifest import Member
    from landmark.contexts.context import Answer, Context
    from landmark.contexts.disk import Damage
    from landmark.contexts.documents import Source
    from landmark.contexts.retriever import Match, Retriever
    from landmark.contexts.segments import Document
    from landmark.data.recall import RecallTask
    from landmark.hf.adapter_file import load_adapter
    from landmark.hf.cache import LandmarkCache
    from landmark.hf.convert import convert, from_pretrained, save_plain
    from landmark.hf.reader import read
    from landmark.hf.retrieval_heads import RetrievalHeads
    from landmark.hf.sequence_parallel import WindowSlice
    from landmark.hf.trace import Span, Trace
    from landmark.index.options import IndexOptions
    from landmark.memory.selection import Retrievals
    from landmark.ops.attention import landmark_attention
    from landmark.settings import LandmarkSettings, ReadingSettings
    from landmark.store.base import Traffic
    from landmark.training.options import TrainOptions
    from landmark.training.plan import Plan
    from landmark.training.recipe import Recipe
    from landmark.training.run import train
    from landmark.training.stages import Stage
    from landmark.view.gather import View

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Chat",
    "Collection",
    "Context",
    "Damage",
    "Document",
    "IndexOptions",
    "LandmarkCache",
    "LandmarkSettings",
    "Match",
    "Member",
    "Plan",
    "ReadingSettings",
    "RecallTask",
    "Recipe",
    "RetrievalHeads",
    "Retrievals",
    "Retriever",
    "Source",
    "Span",
    "Stage",
    "Trace",
    "Traffic",
    "TrainOptions",
    "View",
    "WindowSlice",
    "__version__",
    "adapted_path",
    "adapter_path",
    "book_path",
    "convert",
    "from_pretrained",
    "landmark_attention",
    "load_adapter",
    "model_path",
    "read",
    "save_plain",
    "train",
]

# The module of each public name, in which it is looked up on first use.
_MODULES = {
    "Answer": "landmark.contexts.context",
    "Chat": "landmark.contexts.chat",
    "Collection": "landmark.contexts.collection",
    "Context": "landmark.contexts.context",
    "Damage": "landmark.contexts.disk",
    "Document": "landmark.contexts.segments",
    "IndexOptions": "landmark.index.options",
    "LandmarkCache": "landmark.hf.cache",
    "LandmarkSettings": "landmark.settings",
    "Match": "landmark.contexts.retriever",
    "Member": "landmark.contexts.collection_manifest",
    "Plan": "landmark.training.plan",
    "ReadingSettings": "landmark.settings",
    "RecallTask": "landmark.data.recall",
    "Recipe": "landmark.training.recipe",
    "RetrievalHeads": "landmark.hf.retrieval_heads",
    "Retrievals": "landmark.memory.selection",
    "Retriever": "landmark.contexts.retriever",
    "Source": "landmark.contexts.documents",
    "Span": "landmark.hf.trace",
    "Stage": "landmark.training.stages",
    "Trace": "landmark.hf.trace",
    "TrainOptions": "landmark.training.options",
    "Traffic": "landmark.store.base",
    "View": "landmark.view.gather",
    "WindowSlice": "landmark.hf.sequence_parallel",
    "adapted_path": "landmark.assets",
    "adapter_path": "landmark.assets",
    "book_path": "landmark.assets",
    "convert": "landmark.hf.convert",
    "from_pretrained": "landmark.hf.convert",
    "landmark_attention": "landmark.ops.attention",
    "load_adapter": "landmark.hf.adapter_file",
    "model_path": "landmark.assets",
    "read": "landmark.hf.reader",
    "save_plain": "landmark.hf.convert",
    "train": "landmark.training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'landmark' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
