"""Helpers of these tests are modules beside them (`made`, `faults`, `forking` and others), not a package."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A context that holds `made.HELD`."""
    from made import HEADER, LAYOUT, Content, add, commit

    from landmark.contexts.writer import create

    path = tmp_path / "one"
    with create(path, HEADER, LAYOUT) as writer:
        commit(writer, add(writer, Content(), (1, 2), (3, 4)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny converted model with its tokenizer, on disk."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
    from tiny_reader import save

    return save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path):
    """The tiny model, loaded."""
    import landmark

    return landmark.from_pretrained(folder)
