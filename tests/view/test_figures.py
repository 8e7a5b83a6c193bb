"""The figure: its columns hold all weights, and its files are what their endings say."""

import sys

import numpy as np
import pytest
from made_views import LETTERS, made_up, tokenizer_of

from landmark.view import figures
from landmark.view.gather import check_can_write


@pytest.fixture(scope="module")
def view():
    return made_up(tokenizer_of("byte_level"), ("one", LETTERS * 3))[0]


@pytest.mark.parametrize("columns", [400, 7])
def test_columns_hold_all_weights(view, columns, monkeypatch):
    monkeypatch.setattr(figures, "_COLUMNS", columns)
    weights, edges = figures.heat_map(view)
    assert weights.shape == (len(view.tokens), min(columns, view.block_count))
    assert (edges[0], edges[-1]) == (0, view.block_count)
    np.testing.assert_allclose(weights.sum(1), 1 - view.local.mean((1, 2)))
    for token in (0, 3):
        for block, weight in view.weights_of_blocks(token)[:1]:
            column = np.flatnonzero(edges <= block)[-1]
            assert weights[token, column] >= weight - 1e-12


@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_files_are_what_their_endings_say(view, tmp_path, ending, begins):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"map{ending}"
    view.save(path)
    assert path.read_bytes().startswith(begins)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_labels_are_no_formulas(view):
    pytest.importorskip("matplotlib")
    assert figures._label("$x^2$\n\u202e") == r"\$x^2\$" + "\N{MIDDLE DOT}" * 2


def test_without_matplotlib_it_is_said_before_work(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'landmark-attention\[view\]'"):
        check_can_write(tmp_path / "map.png")
    check_can_write(tmp_path / "page.html")
    assert "matplotlib.pyplot" not in sys.modules  # figures are drawn without a window system
