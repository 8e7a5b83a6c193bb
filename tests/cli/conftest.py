import sys
from pathlib import Path

import pytest

# `tiny_reader` is a module of helpers beside the tests of the evaluation, not a package.
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_reader import save

    return save(tmp_path_factory.mktemp("tiny"))
