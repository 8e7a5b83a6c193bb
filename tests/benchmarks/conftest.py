import sys
from pathlib import Path

import pytest
import torch

from benchmarks.machine import Machine

# `tiny_reader` is a module of helpers beside the tests of the evaluation, not a package.
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))


@pytest.fixture
def machine() -> Machine:
    """A CPU said to do 1000 operations and move 100 bytes a second."""
    return Machine(torch.device("cpu"), torch.float32, 1, "a machine", flops_per_s=1000.0, bytes_per_s=100.0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_reader import save

    return save(tmp_path_factory.mktemp("tiny"))
