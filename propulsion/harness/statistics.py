"""Statistics over seeds, pure: numbers in, numbers out. The resampling is scipy's, with a fixed seed.

Scores of a suite are an array (tasks x seeds); where tasks have other numbers of seeds, a list of rows.
Sources: percentile bootstrap (Efron 1979); stratified bootstrap, interquartile mean and probability of
improvement (Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice"); sign-flip permutation test
(Fisher 1935); Holm (1979); two one-sided tests (Schuirmann 1987).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 2000
BATCH = 100  # resamples at once: bounds the memory, and is fixed, since it changes the draws
MOST_PAIRS = 16  # up to here all 2^n signs are tried; above, `SIGNS` random ones
SIGNS = 9999
MIN_SEEDS = 5  # fewer give no interval for one task: see `COVERAGE`
# How often a 95 % percentile interval of a mean of n normal values holds the true mean; simulated in the tests.
COVERAGE = {2: 0.50, 3: 0.76, 5: 0.84, 10: 0.90, 20: 0.92}
SUITE_COVERAGE = {2: 0.75, 3: 0.86, 5: 0.90}  # the same for the mean of five tasks, by seeds


@dataclass(frozen=True)
class Summary:
    """Of one cell's seeds."""

    n: int
    mean: float
    median: float
    sd: float | None  # of the sample, n - 1; None below two values


@dataclass(frozen=True)
class Interval:
    """A confidence interval at 1 - `ALPHA`."""

    low: float
    high: float


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


@dataclass(frozen=True)
class Comparison:
    """Two methods over the seeds and tasks that both have, in pairs; differences are ours minus theirs."""

    tasks: int
    seeds: int
    difference: float
    interval: Interval | None  # needs two seeds
    improvement: float  # probability that a run of ours beats a run of theirs on the same task
    p: float | None  # None: so few pairs that the test could not have rejected
    seeds_to_test: int  # the fewest with which the test can reject
    seeds_to_show: int | None  # would show a difference like this one with `POWER`; None where it is 0
    equivalence: Equivalence | None  # of the suite's mean, seed by seed; needs two seeds

    @property
    def pairs(self) -> int:
        """Differences that the test has."""
        return self.tasks * self.seeds


def summary(values: Sequence[float]) -> Summary:
    """Of one value or more.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("a summary needs one value or more")
    mean, sd = mean_sd(values)
    return Summary(len(values), mean, statistics.median(values), sd)


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


def intervals(cells: ArrayLike) -> list[Interval | None]:
    """Percentile bootstrap intervals of the means of cells with the same number of seeds, `cells` x `seeds`.

    None below `MIN_SEEDS`: such an interval misses the mean far too often (`COVERAGE`).
    """
    values = np.atleast_2d(np.asarray(cells, dtype=float))
    if values.shape[1] < MIN_SEEDS:
        return [None] * len(values)
    low, high = _bootstrap((values,), np.mean)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def suite_mean(scores: Sequence[ArrayLike]) -> float:
    """Mean over tasks of the mean over seeds."""
    return statistics.fmean(float(np.mean(np.asarray(row, dtype=float))) for row in scores)


def interquartile_mean(scores: Sequence[ArrayLike]) -> float:
    """Mean of the middle half of all runs of all tasks: a bad task or a lucky seed does not move it."""
    return float(_iqm(*map(np.asarray, scores), axis=-1))


def suite_interval(scores: Sequence[ArrayLike], iqm: bool = False) -> Interval | None:
    """Stratified percentile bootstrap: seeds are drawn within each task. None below two seeds in a task."""
    return suite_intervals([scores], iqm)[0]


def suite_intervals(suites: Sequence[Sequence[ArrayLike]], iqm: bool = False) -> list[Interval | None]:
    """`suite_interval` of each; those of one shape are drawn at once, with the same result."""
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, scores in enumerate(suites):
        shapes[tuple(np.size(row) for row in scores)].append(i)
    found: list[Interval | None] = [None] * len(suites)
    for shape, places in shapes.items():
        if shape and min(shape) > 1:
            rows = tuple(np.array([suites[i][task] for i in places], dtype=float) for task in range(len(shape)))
            low, high = _bootstrap(rows, _iqm if iqm else _mean_of_means)
            for i, a, b in zip(places, low, high, strict=True):
                found[i] = Interval(float(a), float(b))
    return found


def _mean_of_means(*rows: Array, axis: int) -> Array:
    return np.mean([np.mean(row, axis=axis) for row in rows], axis=0)


def _iqm(*rows: Array, axis: int) -> Array:
    return np.asarray(stats.trim_mean(np.concatenate(rows, axis=axis), 0.25, axis=axis))


def _bootstrap(samples: tuple[Array, ...], statistic: Callable[..., Any]) -> tuple[Array, Array]:
    """Percentile interval, the same for the same numbers. Each sample is resampled on its own."""
    with np.errstate(all="ignore"):
        found = stats.bootstrap(
            samples, statistic, n_resamples=RESAMPLES, batch=BATCH, axis=-1,
            confidence_level=1 - ALPHA, method="percentile", vectorized=True, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    return found.low, found.high


def probability_of_improvement(ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike]) -> float:
    """Chance that a run of ours beats one of theirs on the same task, ties half; the mean over tasks."""
    chances = []
    for x, y in zip(ours, theirs, strict=True):
        gaps = np.sign(np.subtract.outer(np.asarray(x, dtype=float), np.asarray(y, dtype=float)))
        chances.append(float((gaps.mean() + 1) / 2))
    return statistics.fmean(chances)


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p value of paired differences: the mean against that of all patterns of signs.

    Where both methods are equally good, each difference is as likely with the other sign. Exact up to
    `MOST_PAIRS` pairs; above, by random patterns, the observed one counted.
    """
    values = np.ravel(np.asarray(differences, dtype=float))
    # 0.1 + 0.2 - 0.3 is not quite 0: sums that differ by rounding alone count as equal.
    bound = abs(float(values.sum())) - 1e-12 * float(np.abs(values).sum())
    if values.size > MOST_PAIRS:
        reached = int(np.sum(np.abs(_random_signs(values.size) @ values) >= bound))
        return (reached + 1) / (SIGNS + 1)
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= bound))


@functools.lru_cache(maxsize=64)
def _random_signs(n: int) -> Array:
    """Patterns of n signs, the same for every test of n pairs."""
    return np.random.default_rng(0).choice((-1.0, 1.0), (SIGNS, n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: all at or below alpha are rejected, with at most alpha chance of a false one among them."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def pairs_to_test(tests: int = 1) -> int:
    """The fewest pairs with which one of `tests` sign-flip tests can reject: its p is never below 2 / 2^n."""
    return math.ceil(math.log2(2 * max(tests, 1) / ALPHA))


def pairs_to_show(differences: ArrayLike, tests: int = 1) -> int | None:
    """Pairs with which the sign-flip test would find a mean difference like this one, with chance `POWER`.

    By the normal approximation with a small-sample term, the mean m and variance v of the differences at hand
    taken for the truth: (z_alpha + z_power)^2 v / m^2 + z_alpha^2 / 2. For planning; None where m is 0.
    """
    values = np.ravel(np.asarray(differences, dtype=float))
    mean, variance = float(values.mean()), float(values.var())
    if mean * mean <= 1e-12 * float(np.mean(values**2)):
        return None
    reject, power = (float(stats.norm.ppf(q)) for q in (1 - ALPHA / (2 * max(tests, 1)), POWER))
    needed = (reject + power) ** 2 * variance / mean**2 + reject**2 / 2
    return max(math.ceil(needed), pairs_to_test(tests))


def compare(
    ours: ArrayLike, theirs: ArrayLike, margin: float, tests: int = 1, interval: Interval | None = None
) -> Comparison:
    """Compare two methods over (tasks x seeds) arrays of the same shape, paired by task and seed.

    Args:
        ours: scores, none missing.
        theirs: the same tasks and seeds, in the same order.
        margin: within which means count as equivalent, in the unit of the scores.
        tests: how many tests the table makes, for the numbers of seeds.
        interval: of the mean difference, where it is known already.

    Raises:
        ValueError: the shapes differ, or there is no pair.
    """
    x, y = (np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (ours, theirs))
    if x.shape != y.shape or not x.size:
        raise ValueError(f"a paired comparison needs the same tasks and seeds, not {x.shape} and {y.shape}")
    gaps = x - y
    tasks, seeds = gaps.shape
    show = pairs_to_show(gaps, tests)
    return Comparison(
        tasks=tasks,
        seeds=seeds,
        difference=float(gaps.mean()),
        interval=interval or suite_interval(list(gaps)),
        improvement=probability_of_improvement(list(x), list(y)),
        p=sign_flip_p(gaps) if gaps.size >= pairs_to_test() else None,
        seeds_to_test=math.ceil(pairs_to_test(tests) / tasks),
        seeds_to_show=None if show is None else math.ceil(show / tasks),
        equivalence=tost(gaps.mean(axis=0).tolist(), 0.0, margin) if seeds > 1 else None,
    )
