"""Intervals and tests against published figures and independent forms."""

import pytest

from eval.statistics import wilson_interval


def test_wilson_intervals_equal_published_ones():
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263 and 0 of 20 and 1 of 29
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
