"""What paired seeds say about a difference: intervals, exact tests, and what they could have found.

A measurement is a float per seed and item. Seeds are paired: row n of both arms started from the same one.
Items of one cluster (questions on one text) are not independent. Owns no files and no wording.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, inf, log2, sqrt

import numpy as np

POWER = 0.8
MOST_SEEDS = 100_000
MOST_EXACT = 16
"""seeds of which every combination of signs is tried; of more, `RESAMPLES` random ones"""
RESAMPLES = 100_000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """An arm against its baseline over paired seeds; differences are arm less baseline."""

    seeds: int
    items: int
    clusters: int
    baseline_mean: float
    arm_mean: float
    difference: float
    """mean over seeds of the mean over items"""
    interval: Interval | None
    """t interval over the differences of paired seeds, of these items; None of one seed"""
    item_interval: Interval | None
    """interval where other items could have been drawn, too; None of one seed or one cluster"""
    p_value: float
    """exact two-sided sign-flip test over seeds"""
    effect_size: float | None
    """d_z, difference / seed_spread; None where the seeds do not differ from one another"""
    seed_spread: float | None
    """standard deviation of the differences of paired seeds; None of one seed"""
    smallest_visible: float | None
    """difference that so many seeds find 8 times in 10; None where so few find none at all"""
    alpha: float
    """share of nulls that may be rejected; intervals cover 1 - alpha"""

    def equivalence(self, bound: float) -> float:
        """Return p of two one-sided tests that the difference lies within -bound .. bound (Schuirmann 1987).

        No larger than alpha, it lets one claim that there is no difference that matters. 1 of one seed.
        """
        from scipy.stats import t

        if self.seed_spread is None or abs(self.difference) >= bound:
            return 1.0
        if not self.seed_spread:
            return 0.0
        error = self.seed_spread / sqrt(self.seeds)
        return float(t.sf((bound - abs(self.difference)) / error, self.seeds - 1))


def compare_paired(
    baseline: np.ndarray, arm: np.ndarray, clusters: np.ndarray, alpha: float = 0.05, tests: int = 1
) -> Effect:
    """Return what paired seeds say of an arm against its baseline.

    `baseline` and `arm` are (seeds, items), higher is better; `clusters` (items,) says which text an item is
    about. Every item weighs the same. The smallest visible difference is that of the first of `tests` that
    Holm corrects together. Raises `ValueError` for other shapes and for what is not finite.
    """
    if baseline.shape != arm.shape or arm.shape[1:] != clusters.shape or not arm.size:
        wanted = f"expected two arms of (seeds, items) and clusters of (items,), got {baseline.shape}"
        raise ValueError(f"{wanted}, {arm.shape} and {clusters.shape}; measure both on the same items")
    differences = arm - baseline  # (S, N)
    if not np.isfinite(differences).all():
        raise ValueError("expected numbers, got some that are not finite; leave their items out")
    by_seed = differences.mean(axis=1)  # (S,)
    difference, seeds = float(by_seed.mean()), len(by_seed)
    spread = float(by_seed.std(ddof=1)) if seeds > 1 else None
    visible = _visible_size(seeds, alpha / tests)
    variance = None if spread is None else spread**2 / seeds
    return Effect(
        seeds=seeds,
        items=clusters.size,
        clusters=len(np.unique(clusters)),
        baseline_mean=float(baseline.mean()),
        arm_mean=float(arm.mean()),
        difference=difference,
        interval=None if variance is None else _t_interval(difference, variance, seeds - 1, alpha),
        item_interval=_item_interval(differences, clusters, alpha),
        p_value=sign_flip(by_seed),
        effect_size=difference / spread if spread else (0.0 if spread == difference == 0 else None),
        seed_spread=spread,
        smallest_visible=None if spread is None or visible is None else visible * spread,
        alpha=alpha,
    )


def sign_flip(differences: np.ndarray) -> float:
    """Return the two-sided p of paired differences (seeds,): without an effect either sign is as likely.

    Exact up to 16 seeds, where it is never below 2 / 2**seeds (Fisher 1935, The design of experiments, 21).
    """
    from scipy.stats import permutation_test

    seeds = len(differences)
    if seeds == 1:
        return 1.0
    resamples = 2**seeds if seeds <= MOST_EXACT else RESAMPLES
    ways = {"permutation_type": "samples", "n_resamples": resamples, "vectorized": True}
    found = permutation_test((differences,), np.mean, rng=np.random.default_rng(0), **ways)
    return float(found.pvalue)


def _t_interval(centre: float, variance: float, degrees: float, alpha: float) -> Interval:
    from scipy.stats import t

    half_width = float(t.ppf(1 - alpha / 2, degrees)) * sqrt(variance)
    return centre - half_width, centre + half_width


def _item_interval(differences: np.ndarray, clusters: np.ndarray, alpha: float) -> Interval | None:
    """Return the interval of the mean of (seeds, items) where seeds and clusters are both a sample.

    Two-way analysis of variance with both random: of clusters of one size, the variance is that of the mixed
    model with crossed random effects, fitted by REML; degrees of freedom by Satterthwaite 1946. A cluster
    enters by the sum of its items' deviations, so it weighs what its items weigh.
    """
    _, cluster_of, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    S, K = len(differences), len(sizes)
    if S == 1 or K == 1:
        return None
    centre = float(differences.mean())
    sums = np.stack([np.bincount(cluster_of, row) for row in differences - centre])  # (S, K)
    cells = sums * K / clusters.size
    by_seed, by_cluster = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - by_seed[:, None] - by_cluster
    degrees = np.array([S - 1, K - 1, (S - 1) * (K - 1)])
    squares = np.array([K * (by_seed**2).sum(), S * (by_cluster**2).sum(), (rest**2).sum()]) / degrees
    # the first two hold the noise of the last, which counts once; one below it has no variance of its own
    above = squares[:2] > squares[2]
    parts = squares * [*above, 1 - above.sum()]
    if not parts.any():
        return centre, centre
    return _t_interval(centre, parts.sum() / (S * K), parts.sum() ** 2 / (parts**2 / degrees).sum(), alpha)


def attainable_level(seeds: int, alpha: float) -> float:
    """Return the largest p of the exact test, a multiple of 2 / 2**seeds, within alpha; 0 where none is."""
    return floor(alpha * 2 ** (seeds - 1)) / 2 ** (seeds - 1) if seeds <= MOST_EXACT else alpha


@cache
def _visible_size(seeds: int, alpha: float) -> float | None:
    """Return the d_z that a t test at the level of the exact one finds 8 times in 10, None for none."""
    from statsmodels.stats.power import TTestPower

    level = attainable_level(seeds, alpha)
    return float(TTestPower().solve_power(nobs=seeds, alpha=level, power=POWER)) if level else None


def seeds_needed(spread: float, difference: float, alpha: float = 0.05) -> int | None:
    """Return how many paired seeds find a difference 8 times in 10, where theirs spread so much.

    None where it takes more than 100,000.
    """
    from statsmodels.stats.power import TTestPower

    if not difference:
        return None
    fewest = max(2, 1 + ceil(log2(1 / alpha)))  # below, no p of the exact test is as small as alpha
    size = difference / spread if spread else difference * inf
    numbers = range(fewest, MOST_SEEDS + 1)
    found = bisect_left(numbers, POWER, key=lambda n: TTestPower().power(size, n, alpha))
    return numbers[found] if found < len(numbers) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for testing all of them (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    # one is as it was; the library collects garbage for a third of a second
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) > 1 else list(p_values)


@cache
def look_level(looks: tuple[int, ...], alpha: float = 0.05) -> float:
    """Return the level at which each of several looks may reject, so that all of them together keep alpha.

    `looks` are numbers of seeds, rising, fixed beforehand. A look sees the seeds of those before, so means
    correlate as sqrt(fewer / more), and the level is above alpha / len(looks) (Pocock 1977, Biometrika 64).
    """
    from scipy.optimize import brentq
    from scipy.stats import multivariate_normal, norm

    if list(looks) != sorted(set(looks)) or not looks or looks[0] < 2:
        raise ValueError(f"looks: expected rising numbers of seeds from 2 on, got {looks}")
    correlation = np.sqrt(np.minimum.outer(looks, looks) / np.maximum.outer(looks, looks))

    def excess(z: float) -> float:
        bound = np.full(len(looks), z)
        rng = np.random.default_rng(0)
        return multivariate_normal.cdf(bound, cov=correlation, lower_limit=-bound, rng=rng) - (1 - alpha)

    return float(2 * norm.sf(brentq(excess, 0, 10)))
