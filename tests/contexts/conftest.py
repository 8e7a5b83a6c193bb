"""`made`, `faults` and `killing` are modules of helpers beside these tests, not a package."""

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
