"""One layer's past: what stays in sight, what lies in memory, and which of its blocks a query opens."""

from landmark.memory.layer import LayerMemory, Opened
from landmark.memory.selection import SELECTIONS, Selection

__all__ = ["SELECTIONS", "LayerMemory", "Opened", "Selection"]
