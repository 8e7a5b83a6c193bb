import sys
from pathlib import Path

import pytest

# Modules of helpers, not packages: `made_views` here, `tiny_reader` beside the tests of the evaluation.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "evaluation")]


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """A tiny converted model and its tokenizer."""
    from tiny_reader import save

    import landmark
    from landmark.hf.tokenizer import load_tokenizer

    folder = save(tmp_path_factory.mktemp("tiny"))
    model = landmark.from_pretrained(folder)
    return model, load_tokenizer(folder, model)
