"""Statistics over seeds, pure: numbers in, numbers out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

ALPHA = 0.05


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t tests of a mean against a reference, both at `ALPHA`.

    The mean is equivalent to the reference when its (1 - 2 ALPHA) confidence interval lies within the
    margin around it, which is the same as both tests rejecting (Schuirmann 1987).
    """

    n: int
    mean: float
    sd: float  # of the sample, n - 1
    low: float  # of the 90 % confidence interval of the mean
    high: float
    p: float  # the larger of the two one-sided p values
    reference: float
    margin: float

    @property
    def equivalent(self) -> bool:
        """The whole interval lies within the margin."""
        return self.low > self.reference - self.margin and self.high < self.reference + self.margin

    @property
    def different(self) -> bool:
        """The whole interval lies outside the margin, on one side."""
        return self.low > self.reference + self.margin or self.high < self.reference - self.margin


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None below two values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def tost(values: Sequence[float], reference: float, margin: float) -> Equivalence:
    """Test whether the mean of independent `values` is within `margin` of `reference`.

    Raises:
        ValueError: fewer than two values, or a margin that is not above 0.
    """
    if len(values) < 2:
        raise ValueError(f"an equivalence test needs two values or more, not {len(values)}")
    if not margin > 0:
        raise ValueError(f"an equivalence test needs a margin above 0, not {margin}")
    n = len(values)
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf(1 - ALPHA, n - 1)) * error
    inside = (mean - (reference - margin), reference + margin - mean)  # from either edge of the margin
    p = max(_upper_tail(distance, error, n) for distance in inside)
    return Equivalence(n, mean, sd, mean - half, mean + half, p, reference, margin)


def _upper_tail(distance: float, error: float, n: int) -> float:
    """P(T > distance / error); without spread the answer is certain."""
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / error, n - 1))
