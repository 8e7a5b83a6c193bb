import sys
from pathlib import Path

import pytest

# `tiny_reader` is a module of helpers beside these tests, not a package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_reader import save

    return save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def model(model_folder: Path):
    import landmark

    return landmark.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path, model):
    from landmark.hf.tokenizer import load_tokenizer

    return load_tokenizer(model_folder, model)
