import pytest
import torch

from landmark.bench.machine import Machine


@pytest.fixture
def machine() -> Machine:
    """A CPU said to do 1000 operations and move 100 bytes a second."""
    return Machine(torch.device("cpu"), torch.float32, 1, "a machine", flops_per_s=1000.0, bytes_per_s=100.0)
