"""Statistics of paired seeds against independent forms, and their error rates over simulated experiments."""

import json
import warnings
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import scipy

from eval.effects import attainable_level, compare_paired, holm, look_level, seeds_needed, sign_flip

SIMULATED = 500


def in_binomial_interval(count: int, share: float, trials: int = SIMULATED) -> bool:
    """Whether a count lies in the 99% interval of a binomial variable."""
    low, high = scipy.stats.binom.interval(0.99, trials, share)
    return low <= count <= high


def simulate(rng, seeds=8, items=60, size=0.0, seed_sd=0.3, cluster_sd=0.5, item_sd=1.0):
    """Two arms (seeds, items) and clusters of one to five; how an arm does differs by seed and cluster."""
    clusters = np.repeat(np.arange(items), rng.integers(1, 6, size=items))[:items]
    baseline = rng.normal(-2, 1, size=(seeds, 1)) + rng.normal(size=items)
    by_cluster = cluster_sd * rng.normal(size=items)[clusters]
    noise = item_sd * rng.normal(size=(seeds, items))
    return baseline, baseline + size + seed_sd * rng.normal(size=(seeds, 1)) + by_cluster + noise, clusters


def flipped(differences: np.ndarray) -> np.ndarray:
    """P of the sign-flip test of experiments (experiments, seeds), by writing all signs out."""
    signs = np.array(list(product((1, -1), repeat=differences.shape[1])))
    observed = np.abs(differences.sum(axis=1, keepdims=True))
    return (np.abs(differences @ signs.T) >= observed * (1 - 1e-9)).mean(axis=1)


def test_one_effect_equals_what_other_functions_find():
    baseline, arm, clusters = simulate(np.random.default_rng(1), size=0.4)
    found, by_seed = compare_paired(baseline, arm, clusters), (arm - baseline).mean(axis=1)
    assert (found.seeds, found.items, found.clusters) == (8, 60, len(set(clusters.tolist())))
    assert found.difference == pytest.approx(found.arm_mean - found.baseline_mean)
    assert found.interval == pytest.approx(
        tuple(scipy.stats.ttest_1samp(by_seed, 0).confidence_interval(0.95))
    )
    assert found.p_value == flipped(by_seed[None])[0]
    assert found.effect_size == pytest.approx(by_seed.mean() / by_seed.std(ddof=1))
    power = scipy.stats.nct.sf(
        scipy.stats.t.isf(6 / 256, 7), 7, found.smallest_visible / found.seed_spread * 8**0.5
    )
    assert power == pytest.approx(0.8, abs=1e-4)
    narrow, wide = found.interval, compare_paired(baseline, arm, clusters, alpha=0.01).interval
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_equivalence_is_the_test_of_statsmodels():
    from statsmodels.stats.weightstats import DescrStatsW

    baseline, arm, clusters = simulate(np.random.default_rng(2), size=-0.1)
    found, by_seed = compare_paired(baseline, arm, clusters), (arm - baseline).mean(axis=1)
    for bound in (0.2, 0.5, 2.0):
        expected = DescrStatsW(by_seed).ttost_mean(-bound, bound)[0]
        assert found.equivalence(bound) == pytest.approx(expected)
    assert found.equivalence(2.0) < 0.05 < found.equivalence(0.2)
    assert found.equivalence(abs(found.difference)) == 1.0


def test_the_interval_over_items_is_that_of_a_mixed_model():
    import pandas
    from statsmodels.regression.mixed_linear_model import MixedLM

    rng, S, K = np.random.default_rng(3), 6, 9
    difference = rng.normal(size=(S, 1)) + rng.normal(size=K) + 0.5 * rng.normal(size=(S, K))
    seed, cluster = np.divmod(np.arange(S * K), K)
    frame = pandas.DataFrame({"y": difference.ravel(), "seed": seed, "cluster": cluster, "all": 1})
    crossed = {"seed": "0 + C(seed)", "cluster": "0 + C(cluster)"}
    fitted = MixedLM.from_formula("y ~ 1", groups="all", vc_formula=crossed, data=frame).fit(reml=True)
    # each cluster stands here as two items, which must count as one draw
    arm, clusters = np.repeat(difference, 2, axis=1), np.repeat(np.arange(K), 2)
    found = compare_paired(np.zeros_like(arm), arm, clusters)
    squares = np.array([K * difference.mean(1).var(ddof=1), S * difference.mean(0).var(ddof=1)])
    rest = difference - difference.mean(1, keepdims=True) - difference.mean(0)
    squares = np.append(squares, (rest + difference.mean()).var() * S * K / ((S - 1) * (K - 1)))
    degrees = (squares @ [1, 1, -1]) ** 2 / (squares**2 / [S - 1, K - 1, (S - 1) * (K - 1)]).sum()
    half_width = scipy.stats.t.ppf(0.975, degrees) * fitted.bse["Intercept"]
    assert found.item_interval[1] - found.difference == pytest.approx(half_width, rel=1e-3)
    assert fitted.params["Intercept"] == pytest.approx(found.difference)


def test_every_item_weighs_the_same_however_large_its_cluster():
    # texts of which the larger ones gain; seeds that hardly differ: what is left is the jackknife over texts
    rng, texts = np.random.default_rng(9), 300
    clusters = np.repeat(np.arange(texts), rng.integers(1, 6, size=texts))
    arm = np.bincount(clusters)[clusters] + rng.normal(size=texts)[clusters]
    arm = arm + 1e-3 * rng.normal(size=(4, 1)) + 1e-3 * rng.normal(size=(4, len(clusters)))
    found = compare_paired(np.zeros_like(arm), arm, clusters)
    left_out = [arm[:, clusters != text].mean() for text in range(texts)]
    error = np.std(left_out) * (texts - 1) ** 0.5
    assert found.difference == pytest.approx(arm.mean())
    half_width = found.item_interval[1] - found.difference
    assert half_width == pytest.approx(scipy.stats.t.ppf(0.975, texts - 1) * error, rel=0.01)


def test_where_seeds_and_clusters_do_not_differ_the_interval_over_items_is_that_of_noise():
    found = compare_paired(np.zeros((2, 2)), np.array([[1.0, -1.0], [-1.0, 1.0]]), np.arange(2))
    assert found.item_interval[1] == pytest.approx(
        scipy.stats.t.ppf(0.975, 1)
    )  # mean square 4, of four cells
    assert found.interval == (0.0, 0.0)


def test_identical_arms_and_single_seeds_give_numbers_that_json_holds():
    baseline, arm, clusters = simulate(np.random.default_rng(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = compare_paired(arm, arm, clusters)
        single = compare_paired(baseline[:1], arm[:1], clusters)
        one_text = compare_paired(baseline, arm, np.zeros_like(clusters))
        shifted = compare_paired(np.zeros((8, 4)), np.ones((8, 4)), np.arange(4))
    assert same.interval == same.item_interval == (0.0, 0.0)
    assert (same.p_value, same.effect_size, same.seed_spread, same.smallest_visible) == (1.0, 0, 0, 0)
    assert (same.equivalence(0.01), same.equivalence(0.0), single.equivalence(9.0)) == (0.0, 1.0, 1.0)
    assert single.interval is single.item_interval is single.effect_size is single.smallest_visible is None
    assert single.p_value == 1.0 and one_text.item_interval is None
    assert (shifted.interval, shifted.effect_size, shifted.p_value) == ((1.0, 1.0), None, 2 / 256)
    for each in (same, single, one_text, shifted):
        json.dumps(asdict(each), allow_nan=False)


def test_what_cannot_be_compared_is_refused():
    zeros, clusters = np.zeros((2, 3)), np.arange(3)
    for baseline, arm, texts in ((zeros, zeros[:1], clusters), (zeros, zeros, clusters[:2])):
        with pytest.raises(ValueError, match="measure both on the same items"):
            compare_paired(baseline, arm, texts)
    with pytest.raises(ValueError, match="not finite"):
        compare_paired(zeros, np.array([[0, 0, -np.inf], [0, 0, 0]]), clusters)


def test_exact_p_has_a_floor_that_the_number_of_seeds_sets():
    assert [sign_flip(np.arange(1.0, n + 1)) for n in (1, 2, 5, 6, 8)] == [1, 0.5, 0.0625, 0.03125, 2 / 256]
    assert sign_flip(np.array([3.0, -1, 2])) == 0.5  # of eight sums, ±4 and ±6 are as far from 0 as 4
    assert [attainable_level(n, 0.05) for n in (5, 6, 8)] == [0, 2 / 64, 12 / 256]
    five = compare_paired(np.zeros((5, 2)), 9 + np.random.default_rng(0).random((5, 2)), np.arange(2))
    assert five.p_value == 0.0625 and five.smallest_visible is None
    assert 0 < sign_flip(np.arange(1.0, 21)) < 1e-4  # random signs of 20 seeds, never p = 0


def test_planted_effects_are_found_at_their_size_and_nulls_are_rejected_at_the_level_of_the_test():
    rng = np.random.default_rng(5)
    for size, visible in ((0.0, None), (0.36, 0.36)):
        effects = [compare_paired(*simulate(rng, size=size, cluster_sd=0)) for _ in range(SIMULATED)]
        rejected = sum(each.p_value <= 0.05 for each in effects)
        covered = sum(each.interval[0] <= size <= each.interval[1] for each in effects)
        assert in_binomial_interval(covered, 0.95)
        if visible is None:
            assert in_binomial_interval(rejected, 12 / 256)  # what eight seeds can attain below 5%
            continue
        assert np.mean([each.difference for each in effects]) == pytest.approx(size, abs=0.02)
        # the spread of a paired difference is that of the seed and of the mean of 60 items
        power = scipy.stats.nct.sf(scipy.stats.t.isf(6 / 256, 7), 7, size / (0.09 + 1 / 60) ** 0.5 * 8**0.5)
        assert in_binomial_interval(rejected, power) and power > 0.7


def test_intervals_over_seeds_and_clusters_cover_the_truth_where_intervals_over_seeds_alone_do_not():
    rng = np.random.default_rng(6)
    effects = [compare_paired(*simulate(rng, size=0.2)) for _ in range(SIMULATED)]
    covered = sum(each.item_interval[0] <= 0.2 <= each.item_interval[1] for each in effects)
    assert in_binomial_interval(covered, 0.95)
    of_these_items = sum(each.interval[0] <= 0.2 <= each.interval[1] for each in effects)
    assert of_these_items < scipy.stats.binom.ppf(0.005, SIMULATED, 0.95)


def test_intervals_over_items_alone_cover_two_fifths_where_seeds_spread_by_five_points():
    rng, seeds, items, item_sd = np.random.default_rng(7), 5, 1000, 0.45
    by_seed, by_item = 0.05 * rng.normal(size=(SIMULATED, seeds, 1)), rng.normal(size=(seeds, items))
    half_width = 1.96 * item_sd / (seeds * items) ** 0.5
    means = [(each + item_sd * rng.permuted(by_item, axis=None)).mean() for each in by_seed]
    error = (0.05**2 / seeds + item_sd**2 / (seeds * items)) ** 0.5
    assert 2 * scipy.stats.norm.cdf(half_width / error) - 1 == pytest.approx(0.41, abs=0.005)
    assert in_binomial_interval(int((np.abs(means) < half_width).sum()), 0.41)


def test_holms_adjustment_equals_a_published_one():
    # Holm 1979 rejects in order while p <= 0.05 / (tests left); by hand: 4p, 3p, 2p, p, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_seeds_needed_are_those_of_published_tables():
    # Cohen 1988, table 2.4.1: paired d_z 0.5 and 0.8 take 34 and 15 pairs for power 0.8 at 5% two-sided
    assert [seeds_needed(2.0, difference) for difference in (1.0, -1.6)] == [34, 15]
    assert [seeds_needed(1.0, 9.0), seeds_needed(0.0, 9.0), seeds_needed(1.0, 9.0, alpha=0.01)] == [6, 6, 8]
    assert seeds_needed(1.0, 0.0) is seeds_needed(1.0, 1e-9) is None


def test_levels_of_several_looks_are_pococks_and_keep_alpha():
    # Pocock 1977, table 1: nominal levels 0.0294, 0.0221, 0.0182 for 2, 3, 4 equal steps
    levels = [look_level(tuple(range(8, 8 * n + 1, 8))) for n in (1, 2, 3, 4)]
    assert levels == pytest.approx([0.05, 0.0294, 0.0221, 0.0182], abs=5e-5)
    for looks in ((), (8, 8), (16, 8), (1, 8)):
        with pytest.raises(ValueError, match="rising"):
            look_level(looks)
    rng, looks = np.random.default_rng(8), (6, 9, 12)
    for draw in (rng.standard_normal, lambda size: rng.standard_t(2, size)):
        differences = draw((2 * SIMULATED, looks[-1]))
        rejects = [flipped(differences[:, :n]) <= look_level(looks) for n in looks]
        assert np.any(rejects, axis=0).sum() <= scipy.stats.binom.ppf(0.995, 2 * SIMULATED, 0.05)
