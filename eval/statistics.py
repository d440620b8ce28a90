"""Uncertainty of measured shares."""

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
