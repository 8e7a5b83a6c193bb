"""What every test starts from: no network, one thread, fixed seeds, hypothesis examples that never change."""

import os
import random

# Read when the libraries are imported, here and in the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

# Without a GPU, kernels run in Triton's interpreter. Triton looks at this when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Test processes run side by side; more threads than cores would make each of them slower.
torch.set_num_threads(1)

# The first example of a test may import or compile things, so a time limit per example would fail at random.
settings.register_profile("landmark", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("landmark")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - transformers and datasets draw from the global generator
    torch.manual_seed(0)
