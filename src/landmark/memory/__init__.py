"""Memory of one layer: the local window, the blocks behind it, and which of these each query opens."""

from landmark.memory.blocks import Opened
from landmark.memory.layer import LayerMemory
from landmark.memory.selection import Retrievals

__all__ = ["LayerMemory", "Opened", "Retrievals"]
