import json

import pytest
import torch

from benchmarks import index, landmark_keys, machine
from benchmarks.__main__ import BENCHMARKS
from benchmarks.landmark_keys import Landmarks, drawn_like
from benchmarks.options import IndexSearchOptions

TINY = ["index", "--threads", "1", "--rounds", "2", "--queries", "1,3"]


@pytest.fixture(autouse=True)
def _no_reading(monkeypatch):
    torch.manual_seed(0)
    made = Landmarks(torch.randn(200, 16) @ torch.diag(torch.logspace(0, -1, 16)), torch.randn(2, 50, 16), 2)
    monkeypatch.setattr(landmark_keys, "landmarks_of_book", lambda progress: made)
    monkeypatch.setattr(machine, "MATMUL_WIDTH", {"cpu": 64})
    monkeypatch.setattr(machine, "COPIED_BYTES", {"cpu": 1 << 16})


def test_rows(capsys, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setitem(index._LARGEST, "faiss_hnsw", 100)
    names = ["exact", "hierarchical", "hierarchical@0.9", "faiss_flat", "faiss_hnsw"]
    arguments = ["--blocks", "100,2500", "--methods", ",".join(names[1:]), "--json"]
    assert BENCHMARKS.main([*TINY, *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [(row["blocks"], row["queries"], row["method"]) for row in rows]
    assert found == [(blocks, queries, name) for blocks in (100, 2500) for queries in (1, 3) for name in names]
    for row in rows:
        if (row["blocks"], row["method"]) == (2500, "faiss_hnsw"):
            assert row["skipped"] == "not built for more than 100 blocks: it takes many minutes"
            assert row["recall"] is None
            continue
        assert row["skipped"] is None
        assert row["median_s"] > 0
        assert row["build_s"] > 0
        assert row["kept_bytes"] >= row["blocks"] * 16 * 4
        assert row["flops"] == 2 * 16 * 2 * row["blocks"]
        if row["method"] in ("exact", "hierarchical", "faiss_flat"):
            assert row["recall"] == 1
        assert (row["read_share"] is not None) == (row["blocks"] == 2500 and "hierarchical" in row["method"])


def test_table_and_plot(capsys, tmp_path):
    plot = tmp_path / "plot.svg"
    arguments = ["--blocks", "50,2100", "--methods", "hierarchical,hierarchical@0.9", "--plot", str(plot)]
    assert BENCHMARKS.main([*TINY, *arguments]) == 0
    printed = capsys.readouterr()
    assert all(word in printed.out for word in ("hierarchical@0.9", "recall", "read %", "build s"))
    assert printed.err == ""
    assert plot.exists()


def test_what_does_not_fit_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(index, "shortage", lambda needed, device: "needs more")
    assert BENCHMARKS.main([*TINY, "--blocks", "50", "--methods", "hierarchical"]) == 0
    assert "needs more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("nonsense", "method 'nonsense' is none: choose from exact, hierarchical"),
        ("faiss_flat@0.9", "method 'faiss_flat@0.9' is none"),
        ("exact@0.9", "method 'exact@0.9': recall=0.9 requires kind"),
        ("hierarchical@all", "method 'hierarchical@all': could not convert"),
    ],
)
def test_methods_that_mean_nothing_are_refused(methods, said):
    with pytest.raises(ValueError, match=said):
        index.methods(methods)


def test_other_devices_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="device is cuda"):
        IndexSearchOptions(device="cuda").check()
    with pytest.raises(ValueError, match="dtype bfloat16"):
        IndexSearchOptions(dtype="bfloat16").check()


def test_drawn_keys_have_the_same_moments():
    keys = torch.randn(4000, 3) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.1]]) + torch.tensor([1.0, 2, 3])
    drawn = drawn_like(keys, 100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), keys.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(keys.T), atol=0.05, rtol=0)
