"""Means over seeds, pooled shares, and differences with and without pairs."""

import math

import pytest
from measurements import add_differences, add_perplexities, full, landmark, passkey

from reproduce.tables.measured import Untested, accuracy, describe, difference, one_setting, perplexity
from reproduce.tables.results import Results

T2 = 4.302653  # Student's t of 2 degrees of freedom
T9 = 2.262157


def test_perplexities_are_averaged_in_nats(results: Results):
    add_perplexities(results, full(), *map(math.exp, (2.9, 3.0, 3.1)))
    found = perplexity(results.lines)
    half = T2 * 0.1 / math.sqrt(3)
    assert found.value == pytest.approx(math.exp(3))
    assert (found.low, found.high) == pytest.approx((math.exp(3 - half), math.exp(3 + half)), rel=1e-6)


def test_accuracies_pool_depths_and_widen_to_the_seeds(results: Results):
    for depth, right in ((0.0, 10), (0.1, 8)):
        results.add(passkey(512, right, 10, depth=depth))
    found = accuracy(results.lines)
    assert found.value == 0.9
    assert (found.low, found.high) == pytest.approx((0.6990, 0.9721), abs=5.1e-5)  # Wilson, 18 of 20
    results.add(passkey(512, 10, 20, seed=1))
    both = accuracy(results.lines)
    assert both.value == 28 / 40
    assert (both.low, both.high) == (0, 1)  # 0.7 +- 12.7 * 0.2, within a share
    assert both.seeds == 2


def test_seeds_that_agree_do_not_narrow_the_interval_of_prompts(results: Results):
    for seed in (0, 1):
        results.add(passkey(512, 10, 10, seed=seed))
    assert accuracy(results.lines).low == pytest.approx(0.8389, abs=5.1e-5)  # Wilson, 20 of 20


def test_paired_differences_come_before_perplexities(results: Results):
    add_perplexities(results, landmark(512, 2), 20.0)
    add_perplexities(results, full(), 30.0)
    add_differences(results, landmark(512, 2), full(), 0.01, 0.02, 0.03)
    found = difference(results, landmark(512, 2), full())
    half = T2 * 0.01 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.02, 0.02 - half, 0.02 + half), rel=1e-6)


def test_pairs_serve_both_ways_round_and_no_other_setting(results: Results):
    add_differences(results, landmark(4096, 4), landmark(2048, 4), -0.01)
    found = difference(results, landmark(2048, 4), landmark(4096, 4))
    assert (found.value, found.low) == pytest.approx((0.01, 0.01 - T9 * 0.001), rel=1e-6)
    with pytest.raises(Untested, match="not measured yet"):
        difference(results, landmark(4096, 4), landmark(2048, 2))
    with pytest.raises(Untested, match="not measured yet"):
        difference(results, landmark(4096, 4, "math"), landmark(2048, 4, "math"))


def test_without_pairs_seeds_are_compared_seed_by_seed(results: Results):
    # Seeds scatter far more than the methods differ, and in the same way.
    add_perplexities(results, landmark(512, 2), *map(math.exp, (3.01, 4.01, 5.01)))
    add_perplexities(results, full(), *map(math.exp, (3.0, 4.0, 5.0)))
    found = difference(results, landmark(512, 2), full())
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))


def test_without_pairs_one_seed_has_the_errors_of_both(results: Results):
    add_perplexities(results, landmark(512, 2), 20.0, se=0.03)
    add_perplexities(results, full(), 20.0, se=0.04)
    found = difference(results, landmark(512, 2), full())
    assert (found.value, found.high) == pytest.approx((0, T9 * 0.05), rel=1e-6)


def test_only_common_seeds_are_compared(results: Results):
    results.add({**landmark(512, 2), "seed": 5, "steps": 1, "perplexity": 20.0, "se": None, "samples": 1})
    add_perplexities(results, full(), 20.0)
    with pytest.raises(Untested, match="no seed in common"):
        difference(results, landmark(512, 2), full())


def test_toy_step_counts_are_not_compared_with_whole_ones(results: Results):
    add_perplexities(results, landmark(512, 2), 20.0)
    add_perplexities(results, full(), 20.0, quick=True)
    with pytest.raises(Untested, match=r"only one of .* with --quick"):
        difference(results, landmark(512, 2), full())


def test_the_most_trained_is_taken_and_other_settings_are_not_mixed(results: Results):
    add_perplexities(results, landmark(512, 2) | {"steps": 100}, 20.0)
    add_perplexities(results, landmark(512, 2) | {"steps": 200}, 10.0)
    assert one_setting(results.lines, "it")[0]["perplexity"] == 10.0
    add_perplexities(results, landmark(512, 2) | {"steps": 200, "block_size": 31}, 11.0)
    with pytest.raises(Untested, match="it: measured with several values of block size"):
        one_setting(results.lines, "it")


def test_settings_are_described_by_what_tells_them_apart():
    assert describe(full()) == "full attention, read length 512, local 512"
    assert describe(landmark(4096, 2), landmark(4096, 4)) == "k 2"
    assert describe(full(), landmark(512, 2)) == "full attention, local 512"
