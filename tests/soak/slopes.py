"""Whether a series of measurements grows: Theil and Sen's slope, with its confidence interval.

Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968) 1379-1389:
the median of the slopes between all pairs of points, which a few wild points do not move, and an
interval from the ranks of those slopes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.96  # of a normal distribution: 95 % lie within


@dataclass(frozen=True)
class Slope:
    """Per hour: the estimate, and the ends of its 95 % confidence interval."""

    per_hour: float
    low: float
    high: float

    def grows(self, bound: float) -> bool:
        """Surely above zero, and by more than anybody would mind."""
        return self.low > 0 and self.per_hour > bound


def slope(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """Of at least three points, in the order of time."""
    t, y = np.asarray(seconds, float), np.asarray(values, float)
    first, second = np.triu_indices(len(t), k=1)
    slopes = np.sort((y[second] - y[first]) / (t[second] - t[first])) * 3600
    n, pairs = len(t), len(slopes)
    _, ties = np.unique(y, return_counts=True)
    variance = n * (n - 1) * (2 * n + 5) - float(np.sum(ties * (ties - 1) * (2 * ties + 5)))
    reach = Z * math.sqrt(variance / 18)
    low = max(0, round((pairs - reach) / 2))
    high = min(pairs - 1, round((pairs + reach) / 2))
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))
