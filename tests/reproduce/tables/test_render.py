"""The report as a whole: its head, its plots, and what it says of toy step counts."""

import sys
from pathlib import Path

import pytest
from measurements import add_differences, add_perplexities, full, landmark, passkey

from reproduce.tables import names
from reproduce.tables.render import check_plots, render
from reproduce.tables.results import Results

PLOTS = ("perplexity", "selection", "retrieve", "block_size", "miss_gate", "passkey", "conversion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with something in every table that has a plot."""
    folder = tmp_path_factory.mktemp("report")
    render(measured(Results(folder / "results.jsonl")), folder / "out")
    return folder


def measured(results: Results) -> Results:
    around = {"machine": "AMD EPYC, 2 cores", "date": "2026-11-25", "parameters": "0.9M"}
    books = {"method": names.LANDMARK, "corpus": "books", "read_length": 4096, "local": 250}
    for length in (512, 2048, 4096):
        add_perplexities(results, landmark(length, 4), 20.0, 20.1, attended=350, **around)
        add_perplexities(results, landmark(length, 4, "math"), 5.0, **around)
    add_perplexities(results, full(), 20.5, 20.6, attended=256, **around)
    add_differences(results, landmark(512, 4), full(), -0.01)
    for number, selection in enumerate(("per_token_and_head", "per_head", "per_token")):
        add_perplexities(
            results, books | {"table": names.SELECTION, "selection": selection, "retrieve": 4}, 20 + number, 19 + number
        )
    for size in (1, 4, 16):
        add_perplexities(results, books | {"table": names.RETRIEVE, "retrieve": size}, 20 + 1 / size)
        add_perplexities(
            results, books | {"table": names.BLOCK_SIZE, "block_size": 8 * size, "retrieve": 32 // size}, 20.0
        )
    gate = books | {"table": names.MISS_GATE, "read_length": 2048}
    add_perplexities(results, gate, 20.0)
    for threshold in (0.1, 0.3):
        changes = {"method": names.WITH_MISS_GATE, "threshold": threshold}
        add_perplexities(results, gate | changes, 20 + threshold, skipped=2 * threshold)
    for length in (512, 32768):
        for tenth in range(10):
            results.add(passkey(length, 5 - tenth // 5, 5, depth=tenth / 10, model="0.9M parameters", **around))
    for steps in (0, 50):
        told = {"table": names.CONVERSION, "steps": steps, "tokens_trained": steps * 1000}
        add_perplexities(results, books | told, 30 - steps / 5)
        results.add(told | {"method": names.LANDMARK, "seed": 0, "read_length": 8192, "accuracy": 0.5, "samples": 4})
    return results


def test_plots_are_small_pngs_that_the_report_shows(folder: Path):
    report = (folder / "out" / "results.md").read_text()
    files = sorted(path.name for path in (folder / "out" / "figures").iterdir())
    assert files == sorted(f"{name}.png" for name in PLOTS)
    for name in files:
        data = (folder / "out" / "figures" / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) <= 80_000
        assert report.count(f"](figures/{name})") == 1


def test_the_head_tells_scale_machine_and_date(folder: Path):
    report = (folder / "out" / "results.md").read_text()
    assert f"- Measurements: {len(Results(folder / 'results.jsonl').lines)}, in `results.jsonl`\n" in report
    assert (
        "- Scale: models of 0.9M parameters; 0, 50, 100 steps of training; seeds 0, 1\n"
        "- Machine: AMD EPYC, 2 cores\n- Date: 2026-11-25\n" in report
    )
    assert "QUICK" not in report
    assert "--quick" not in report


def test_toy_step_counts_are_loud(results: Results, tmp_path: Path):
    add_perplexities(results, landmark(512, 2), 20.0, quick=True)
    results.add(passkey(512, 1, 2))
    render(results, tmp_path)
    report = (tmp_path / "results.md").read_text()
    assert report.startswith("# Results\n\n> **QUICK: TOY STEP COUNTS.** 1 of 2 measurements")
    assert "(`--quick`): the verdicts mean nothing" in report


def test_nothing_measured_is_a_whole_report(results: Results, tmp_path: Path):
    render(results, tmp_path)
    report = (tmp_path / "results.md").read_text()
    assert report.count("\n## ") == 1 + len(names.TABLES)
    assert report.count("Plot of ") == len(PLOTS)
    assert "0 held, 0 did not hold, 0 no difference, 0 not decided, 20 not measured." in report
    assert list((tmp_path / "figures").iterdir()) == []


def test_rendering_again_gives_the_same(results: Results, tmp_path: Path):
    add_perplexities(results, landmark(512, 2), 20.0)
    render(results, tmp_path)
    files = [tmp_path / "results.md", tmp_path / "figures" / "perplexity.png"]
    first = [path.read_bytes() for path in files]
    render(Results(results.path), tmp_path)
    assert [path.read_bytes() for path in files] == first


def test_without_matplotlib_nothing_is_written(results: Results, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (check_plots, lambda: render(results, tmp_path / "out")):
        with pytest.raises(ValueError, match=r"needs matplotlib: pip install 'landmark-attention\[benchmarks\]'"):
            call()
    assert not (tmp_path / "out").exists()
