"""Shares of right answers and their intervals."""

import pytest

from landmark.evaluation.samples import share_interval


def test_wilsons_interval_is_the_printed_one():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5.1e-5)
    assert share_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5.1e-5)
    assert share_interval(0, 20) == pytest.approx((0.0000, 0.1611), abs=5.1e-5)
    assert share_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5.1e-5)
    assert share_interval(20, 20)[1] == 1
