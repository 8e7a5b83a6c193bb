import pytest

from landmark.index import coarse, head_lists, hierarchical, lists


@pytest.fixture
def codes_at_once(monkeypatch):
    """Lets the hierarchical index use codes and lists from the first block, whatever comes, and remake them often."""
    monkeypatch.setattr(hierarchical, "_COARSE_FROM", 1)
    monkeypatch.setattr(hierarchical, "_WORTHWHILE", 2.0)
    monkeypatch.setattr(coarse, "_GROWTH", 2)
    monkeypatch.setattr(head_lists, "_NEWEST", 2 * head_lists.LANES)
    monkeypatch.setattr(lists, "_GROWTH", 4)
