import sys
from pathlib import Path

import pytest

# `measurements` is a module of helpers beside these tests, not a package.
sys.path.insert(0, str(Path(__file__).parent))

from reproduce.tables.results import Results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results.jsonl")
