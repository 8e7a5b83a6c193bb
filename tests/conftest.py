"""What every test starts from: no network, one thread, fixed seeds, hypothesis examples that never change."""

import os
import random
import shutil

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


@pytest.fixture(scope="session")
def sharp_llama():
    """Makes a Llama, or a model of another family, of random weights and of the shape that it is given.

    Weights of the usual size predict nothing in particular; larger ones make wrong reading show.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    def made(family="llama", **shape):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight.mul_(8)
        return model

    return made


@pytest.fixture
def known_heads(monkeypatch):
    """Takes a head of the second layer for one that is known to rank blocks, whatever the model."""
    from landmark import RetrievalHeads

    heads = RetrievalHeads(((1, 0),))
    monkeypatch.setattr(RetrievalHeads, "known", classmethod(lambda cls, config: heads))
    return heads


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. Where it cannot be driven, tests that need it are skipped."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    # A sandbox of its own is not to be had as root, or in most containers; the page is the only thing it opens.
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], env=dict(os.environ))
        yield browser
        browser.close()
