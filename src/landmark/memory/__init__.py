"""Memory of one layer: the local window, the blocks behind it, and which of these each query opens."""

from landmark.memory.blocks import Opened
from landmark.memory.layer import LayerMemory
from landmark.memory.selection import Retrievals
from landmark.settings import SELECTIONS, Positions, Selection

__all__ = ["SELECTIONS", "LayerMemory", "Opened", "Positions", "Retrievals", "Selection"]
