"""Uncertainty of measured shares, of one model and of two over the same questions."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a share at `z` standard normal deviations (1.96: 95%); (0, 1) without trials.

    Wilson 1927, Probable inference, the law of succession, and statistical inference (JASA 22).
    """
    if not trials:
        return 0.0, 1.0
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half_width = z / (1 + weight) * sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


@dataclass(frozen=True)
class PairedCounts:
    """How two models did on the same questions."""

    both: int
    """questions that both answered rightly"""
    only_first: int
    only_second: int
    neither: int

    @property
    def questions(self) -> int:
        """Number of questions."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Share of the second less that of the first."""
        return (self.only_second - self.only_first) / self.questions

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how often equal models would differ so much (McNemar 1947).

        Only questions that one alone answered rightly count; either could have been the one.
        """
        from scipy.stats import binomtest  # slow to import

        told_apart = self.only_first + self.only_second
        return float(binomtest(self.only_second, told_apart).pvalue) if told_apart else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of `difference`.

        Bonett and Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions
        based on paired data (J. Educ. Behav. Stat. 37): one pair more of either kind.
        """
        first, second = ((count + 1) / (self.questions + 2) for count in (self.only_first, self.only_second))
        centre = second - first
        half_width = 1.96 * sqrt((first + second - centre**2) / (self.questions + 2))
        return max(-1.0, centre - half_width), min(1.0, centre + half_width)


def count_pairs(pairs: Iterable[tuple[bool, bool]]) -> PairedCounts:
    """Count pairs of (the first is right, the second is right)."""
    seen = list(pairs)
    return PairedCounts(
        *(seen.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    )
