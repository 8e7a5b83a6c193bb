"""One layer's past: what stays in sight, what lies in memory, and which of its blocks a query opens."""

from landmark.memory.blocks import Opened
from landmark.memory.layer import LayerMemory
from landmark.memory.selection import Retrievals
from landmark.settings import SELECTIONS, Positions, Selection

__all__ = ["SELECTIONS", "LayerMemory", "Opened", "Positions", "Retrievals", "Selection"]
