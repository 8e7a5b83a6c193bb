import sys
from pathlib import Path

import pytest

from landmark.index import codes, hierarchical, ivf

# `index_cases` is a module of helpers beside these tests, not a package.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def codes_at_once(monkeypatch):
    """Lets the hierarchical index use codes and lists from the first block, and rebuild them often."""
    monkeypatch.setattr(hierarchical, "_CODES_FROM", 1)
    monkeypatch.setattr(hierarchical, "_MAX_SCORED_SHARE", 2.0)
    monkeypatch.setattr(codes, "_REFIT_GROWTH", 2)
    monkeypatch.setattr(ivf, "_NEWEST", 2 * ivf.LANES)
    monkeypatch.setattr(ivf, "_REBUILD_GROWTH", 4)
