"""The page of `landmark view` in a browser, timed."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.view import made_up


def test_reads_are_weights_of_one_softmax():
    view = made_up(5000, 6)
    assert view.local.shape == (6, 30, 9)
    np.testing.assert_allclose(view.weights.sum(-1) + view.local, 1)
    assert 0 <= view.blocks.min() <= view.blocks.max() < 5000 // 63
    assert view.texts[-1].stop == 5000 + 9 + 6
    assert len(view.texts[0].text) == 5000 * 4.3


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium is installed")
def test_rows(capsys):
    pytest.importorskip("playwright")
    assert BENCHMARKS.main(["view", "--tokens", "4000,9000", "--generated", "3", "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["tokens"] for row in rows] == [4000, 9000]
    assert rows[0]["bytes"] < rows[1]["bytes"] < 1_000_000
    for row in rows:
        for what in ("open", "click", "search"):
            assert 0 < row[f"{what}_median_s"] <= row[f"{what}_maximum_s"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium is installed")
def test_pages_that_were_written(tmp_path, capsys):
    pytest.importorskip("playwright")
    made_up(4000, 3).save(tmp_path / "page.html")
    (tmp_path / "other.html").write_text("<title>something else</title>", encoding="utf-8")
    command = ["view", "--rounds", "1", "--json", "--pages", str(tmp_path / "page.html")]
    assert BENCHMARKS.main(command) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["page"], row["generated"]) == ("page.html", 3)
    assert BENCHMARKS.main([*command, str(tmp_path / "other.html")]) == 2
    assert "has no generated token" in capsys.readouterr().err
    assert BENCHMARKS.main(["view", "--pages", str(tmp_path / "none.html")]) == 2
