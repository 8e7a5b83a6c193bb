"""Windows, likelihoods, and paired differences, against loops and numbers by hand."""

import math

import numpy as np
import pytest
import torch

from landmark.evaluation.perplexity import (
    Scored,
    Setting,
    check_lengths,
    cut_windows,
    mean_and_error,
    paired,
    parse_setting,
    score,
    token_nll,
)
from landmark.evaluation.reading import Reading
from landmark.settings import ReadingSettings

IDS = torch.randint(3, 270, (2, 60), generator=torch.Generator().manual_seed(1))
NAN = math.nan


def test_windows_leave_out_what_does_not_fill_one():
    windows = cut_windows([np.arange(7), np.arange(100, 102), np.arange(200, 206)], 3, None)
    assert windows.tolist() == [[0, 1, 2], [3, 4, 5], [200, 201, 202], [203, 204, 205]]


def test_fewer_windows_are_spread_evenly():
    assert cut_windows([np.arange(10)], 1, 4)[:, 0].tolist() == [0, 2, 5, 7]
    assert len(cut_windows([np.arange(10)], 1, 40)) == 10


@pytest.mark.parametrize(
    ("span", "limit", "said"),
    [(8, None, "the longest has 7"), (2, 0, "windows is 0"), (2, -1, "windows is -1")],
)
def test_no_windows(span, limit, said):
    with pytest.raises(ValueError, match=said):
        cut_windows([np.arange(7)], span, limit)


def test_lengths_share_the_longest_windows():
    assert check_lengths([4, 12, 6]) == 12
    with pytest.raises(ValueError, match=r"e\.g\. 10 for it"):
        check_lengths([5, 12])
    with pytest.raises(ValueError, match="length 1 "):
        check_lengths([1, 12])


@pytest.mark.parametrize("attention", ["landmark", "local", "full"])
def test_likelihood_is_that_of_a_loop_over_tokens(model, attention):
    options = {} if attention == "full" else {"local_blocks": 2}
    reading = Reading.of(model.config, attention, **options)
    if attention == "landmark":
        reading = Reading.of(model.config, retrieve=2, local_blocks=1, chunk_size=7)
    nll = token_nll(model, IDS, reading)
    assert nll[:, 0].isnan().all()
    for row in range(2):
        cache, logits = reading.cache(model.config), None
        for position in range(60):
            chunk_start = position if cache is None else position // reading.chunk_size * reading.chunk_size
            if logits is not None:
                expected = -logits.log_softmax(-1)[IDS[row, position]]
                torch.testing.assert_close(nll[row, position], expected.double(), atol=1e-4, rtol=1e-4)
            with torch.no_grad():
                if cache is None:
                    logits = model(input_ids=IDS[row : row + 1, : position + 1]).logits[0, -1]
                elif position == chunk_start:
                    chunk = IDS[row : row + 1, position : position + reading.chunk_size]
                    all_logits = model(input_ids=chunk, past_key_values=cache).logits[0]
            if cache is not None:
                logits = all_logits[position - chunk_start]


def test_score_cuts_windows_up_and_batches_do_not_matter(model):
    windows = IDS.numpy()
    setting = Setting(Reading.of(model.config, chunk_size=7), 20)
    seen: list[int] = []
    one = score(model, windows, setting, batch_size=1, progress=seen.append)
    four = score(model, windows, setting, batch_size=4)
    assert sum(seen) == 120
    np.testing.assert_allclose(one.nll, four.nll, atol=1e-4)
    assert np.isnan(one.nll).sum() == 6
    assert np.isnan(one.nll[:, ::20]).all()
    alone = token_nll(model, IDS[1:, 20:40], setting.reading)
    np.testing.assert_allclose(one.nll[1:, 20:40], alone.numpy(), atol=1e-4)


def test_a_threshold_is_reported_with_the_share_it_spares(model):
    windows, shares = IDS.numpy(), []
    for threshold in (0.0, 1e-30, 0.5, 1 - 1e-9):
        reading = Reading.of(model.config, chunk_size=10, miss_threshold=threshold)
        scored = score(model, windows, Setting(reading, 60), batch_size=1)
        figures = scored.figures()
        assert figures["miss_threshold"] == threshold
        shares.append(figures.get("retrievals_skipped"))
    assert shares[:2] == [None, 0.0]
    assert 0 < shares[2] < shares[3] == 1
    local = score(model, windows, Setting(Reading.of(model.config, retrieve=0, chunk_size=10), 60))
    np.testing.assert_allclose(scored.nll, local.nll, atol=1e-4)


def test_error_comes_from_the_scatter_of_windows():
    values = np.array([[NAN, 1.0, 3.0], [NAN, 5.0, 5.0], [NAN, 2.0, 0.0]])
    mean, error = mean_and_error(values)
    # Means of the windows: 2, 5, 1; variance ((-2/3)^2 + (7/3)^2 + (-5/3)^2) / 2 = 13/3.
    assert mean == pytest.approx(8 / 3)
    assert error == pytest.approx(math.sqrt(13 / 3) / math.sqrt(3))
    assert mean_and_error(values[:1]) == (2.0, None)


def test_figures_by_hand():
    setting = Setting(Reading("full", 5), 3)
    figures = Scored(setting, np.array([[NAN, math.log(2), math.log(8)]]), 1.5).figures()
    assert figures["perplexity"] == pytest.approx(4.0)
    assert figures["nll"] == pytest.approx(math.log(4))
    assert (figures["tokens"], figures["windows"], figures["attended"]) == (2, 1, 2.0)
    assert (figures["nll_se"], figures["seconds"]) == (None, 1.5)


def test_pairs_are_the_tokens_that_both_predicted():
    long = Scored(Setting(Reading("full", 5), 4), np.array([[NAN, 1.0, 9.0, 2.0], [NAN, 2.0, 9.0, 4.0]]), 0.0)
    short = Scored(Setting(Reading("full", 5), 2), np.array([[NAN, 2.0, NAN, 2.0], [NAN, 2.0, NAN, 7.0]]), 0.0)
    pair = paired(long, short)
    assert pair["tokens"] == 4
    assert pair["difference"] == pytest.approx(-1.0)  # windows: -0.5, -1.5
    assert pair["difference_se"] == pytest.approx(0.5)
    assert pair["perplexity"] == pytest.approx(math.exp(9 / 4))
    assert pair["against_perplexity"] == pytest.approx(math.exp(13 / 4))
    assert (pair["setting"], pair["against"]) == ("full@4", "full@2")


def test_settings_take_over_what_they_leave_out(model):
    compared = Setting(Reading.of(model.config, retrieve=3, local_blocks=2, chunk_size=20), 400)
    other = parse_setting("landmark@200,retrieve=0", model.config, compared)
    assert other == Setting(Reading("landmark", 5, ReadingSettings(retrieve=0, local_blocks=2, chunk_size=20)), 200)
    other = parse_setting("landmark@200,max_blocks=7,selection=per_head,miss_threshold=0.25", model.config, compared)
    assert other.reading == Reading(
        "landmark",
        5,
        ReadingSettings(3, 2, 20, 7, "per_head", 0.25),
    )
    told = "landmark@200,retrieve=3,local_blocks=2,chunk_size=20,max_blocks=7,selection=per_head,miss_threshold=0.25"
    assert other.name == told
    assert parse_setting("landmark@100", model.config, other).reading == other.reading
    assert parse_setting("full@100", model.config, compared) == Setting(Reading("full", 5), 100)
    local = parse_setting("local@400", model.config, compared).reading
    for attention in ("landmark", "local"):
        whatever = parse_setting(f"{attention}@400,allow_nonfinite=True", model.config, compared)
        assert whatever.reading.settings.allow_nonfinite
    assert compared.reading.attended(400) <= local.attended(400) < compared.reading.attended(400) + 5
    assert parse_setting("local@400,window=8", model.config, compared).reading.settings.local_blocks == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "full",
        "full@",
        "full@x",
        "local@-8",
        *("landmark@8," + x for x in ("retrieve", "k=2", "selection=", "miss_threshold=.")),
        "landmark@8,allow_nonfinite=1",
        "landmark@8,retrieve=0,retrieve=1",
    ],
)
def test_no_setting(model, text):
    compared = Setting(Reading.of(model.config), 400)
    with pytest.raises(ValueError, match="no setting to compare with"):
        parse_setting(text, model.config, compared)
