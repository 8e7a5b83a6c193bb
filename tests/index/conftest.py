import pytest

from landmark.index import codes, hierarchical, ivf


@pytest.fixture
def codes_at_once(monkeypatch):
    """Lets the hierarchical index use codes and lists from the first block, whatever comes, and remake them often."""
    monkeypatch.setattr(hierarchical, "_COARSE_FROM", 1)
    monkeypatch.setattr(hierarchical, "_WORTHWHILE", 2.0)
    monkeypatch.setattr(codes, "_GROWTH", 2)
    monkeypatch.setattr(ivf, "_NEWEST", 2 * ivf.LANES)
    monkeypatch.setattr(ivf, "_GROWTH", 4)
