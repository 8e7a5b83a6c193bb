import pytest

from landmark.index import coarse, hierarchical


@pytest.fixture
def codes_at_once(monkeypatch):
    """Lets the hierarchical index use its codes from the first block, whatever comes, and remake its bases often."""
    monkeypatch.setattr(hierarchical, "_COARSE_FROM", 1)
    monkeypatch.setattr(hierarchical, "_WORTHWHILE", 2.0)
    monkeypatch.setattr(coarse, "_GROWTH", 2)
