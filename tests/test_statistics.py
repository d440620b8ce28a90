"""Intervals and tests against published figures and independent forms."""

from math import comb

import pytest

from eval.statistics import PairedCounts, count_pairs, wilson_interval


def test_wilson_intervals_equal_published_ones():
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263 and 0 of 20 and 1 of 29
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def exact_mcnemar(one: int, other: int) -> float:
    """Twice the smaller tail of a fair coin thrown once per question that tells the two apart."""
    tail = sum(comb(one + other, k) for k in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2 ** (one + other))


@pytest.mark.parametrize(
    "counts", [(850, 31, 50, 69), (0, 0, 6, 0), (3, 5, 5, 9), (0, 1, 0, 0), (1, 0, 0, 4)]
)
def test_mcnemars_test_is_that_of_a_fair_coin(counts):
    pairs = PairedCounts(*counts)
    assert pairs.p_value == pytest.approx(exact_mcnemar(counts[1], counts[2]))
    assert PairedCounts(0, 0, 6, 0).p_value == 2 / 2**6


def test_the_paired_interval_is_the_published_form_by_hand():
    # 21 pairs, of which 1 is right for the first alone and 7 for the second alone: (8 - 2) / 23 and its width
    low, high = PairedCounts(1, 1, 7, 12).interval
    assert (low, high) == pytest.approx((0.0134, 0.5084), abs=5e-5)
    assert (low + high) / 2 == pytest.approx(6 / 23)
    assert high - 6 / 23 == pytest.approx(1.96 * ((2 / 23 + 8 / 23 - (6 / 23) ** 2) / 23) ** 0.5)
    assert PairedCounts(1, 1, 7, 12).difference == 6 / 21


def test_equal_models_differ_by_nothing_with_some_doubt():
    same = count_pairs([(True, True)] * 60 + [(False, False)] * 38)
    assert same == PairedCounts(60, 0, 0, 38) and (same.difference, same.p_value) == (0.0, 1.0)
    assert same.interval == pytest.approx((-1.96 * (2 / 100 / 100) ** 0.5, 1.96 * (2 / 100 / 100) ** 0.5))


def test_pairs_are_told_apart_by_who_is_right():
    assert count_pairs([(True, False), (True, False), (False, True), (True, True)]) == PairedCounts(
        1, 2, 1, 0
    )
