"""One layer's past: what stays in sight, what lies in memory, and which of its blocks a query opens."""

from landmark.memory.blocks import Opened
from landmark.memory.layer import LayerMemory
from landmark.memory.misses import Retrievals
from landmark.memory.rules import SELECTIONS, Positions, Selection

__all__ = ["SELECTIONS", "LayerMemory", "Opened", "Positions", "Retrievals", "Selection"]
