import math

import pytest
import torch
from torch.nn import functional

from reproduce.studies import smollm2_perplexity
from reproduce.studies.options import PerplexityOptions
from reproduce.studies.records import Records
from reproduce.studies.smollm2_perplexity import compared, figures, measure_windows, readings_of, windows_of

READINGS = ("full", "landmark,chunk_size=14")


def text(tokens: int = 90) -> torch.Tensor:
    return torch.randint(250, (tokens,))


def test_where_conversion_changes_nothing_nothing_is_lost(same_pair):
    found = compared(same_pair, readings_of(same_pair.converted.config, ("full", "landmark"), 90), text())
    assert found["divergence"] == {"full": pytest.approx(0, abs=1e-5), "landmark": pytest.approx(0, abs=1e-5)}
    assert found["nll"]["full"] == pytest.approx(found["nll"]["original"], abs=1e-5)


def test_likelihoods_and_divergences_are_those_of_whole_logits(pair, monkeypatch):
    monkeypatch.setattr(smollm2_perplexity, "ROWS", 32)  # in several pieces
    ids = text()
    found = compared(pair, readings_of(pair.converted.config, READINGS, len(ids)), ids)
    with torch.no_grad():
        p = pair.original(ids[None]).logits[0, :-1].log_softmax(-1)
        q = pair.converted(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    assert found["nll"]["original"] == pytest.approx(float(functional.nll_loss(p, ids[1:])), rel=1e-5)
    assert found["nll"]["full"] == pytest.approx(float(functional.nll_loss(q, ids[1:])), rel=1e-5)
    wanted = float(functional.kl_div(q, p, reduction="batchmean", log_target=True))
    assert found["divergence"]["full"] == pytest.approx(wanted, rel=1e-4)
    assert wanted > 0.01
    assert found["divergence"]["landmark,chunk_size=14"] != pytest.approx(wanted, rel=1e-3)


def test_a_reading_that_is_none_is_refused_before_a_model_is_loaded(pair, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("a text", encoding="utf-8")
    monkeypatch.setattr(smollm2_perplexity, "adapted_config", lambda *_: pair.converted.config)
    options = {"original": "model.gguf", "texts": (tmp_path / "text.txt",), "out": tmp_path / "out.jsonl"}
    with pytest.raises(ValueError, match="attention is 'foo'"):
        smollm2_perplexity.run(PerplexityOptions(**options, readings=("foo",)))


def test_windows_are_spread_and_an_early_end_has_all_texts():
    windows = windows_of({"a": torch.arange(100), "b": torch.arange(45)}, 10, 3)
    assert [(w.text, w.number, int(w.ids[0])) for w in windows] == [
        ("a", 0, 0),
        ("b", 0, 0),
        ("a", 1, 30),
        ("b", 1, 10),
        ("a", 2, 60),
        ("b", 2, 20),
    ]


def test_a_second_run_measures_what_is_missing_and_time_ends_it(pair, tmp_path):
    readings = readings_of(pair.converted.config, READINGS, 30)
    windows = windows_of({"a": text(60)}, 30, 2)
    records = Records(tmp_path / "a", {})
    assert measure_windows(pair, readings, windows, records, until=-math.inf) == []
    first = measure_windows(pair, readings, windows[:1], records, math.inf)
    both = measure_windows(pair, readings, windows, Records(tmp_path / "a", {}), math.inf)
    assert len(both) == 2
    assert both[0] == first[0]


def test_figures_are_those_of_paired_differences():
    def record(original: float, full: float) -> dict:
        seconds = {"original": 1.0, "full": 2.0}
        return {"nll": {"original": original, "full": full}, "divergence": {"full": 0.1}, "seconds": seconds}

    original, full = figures(100, [record(3.0, 3.01), record(1.0, 1.03)])
    assert original["perplexity"] == pytest.approx(math.exp(2))
    assert (original["windows"], original["tokens"], full["tokens_per_s"]) == (2, 198, 50)
    assert full["difference"] == pytest.approx(0.02)
    assert full["difference_se"] == pytest.approx(0.01)
    assert full["ratio"] == pytest.approx(math.exp(0.02))
    assert full["ratio_low"] == pytest.approx(math.exp(0.02 - 12.706 * 0.01), rel=1e-3)
    assert figures(100, []) == []
    assert "ratio_low" not in figures(100, [record(3.0, 3.01)])[1]  # a single window has no scatter
