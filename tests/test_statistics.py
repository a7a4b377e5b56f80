"""Statistics against scipy's own tests, cases worked by hand, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from propulsion.harness.statistics import (
    ALPHA,
    COVERAGE,
    MIN_SEEDS,
    MOST_PAIRS,
    SUITE_COVERAGE,
    compare,
    holm,
    interquartile_mean,
    intervals,
    mean_sd,
    pairs_to_show,
    pairs_to_test,
    probability_of_improvement,
    sign_flip_p,
    suite_interval,
    suite_intervals,
    suite_mean,
    summary,
    tost,
)

samples = st.lists(st.floats(-50, 50).map(lambda x: round(x, 3)), min_size=2, max_size=12)


@given(samples, st.floats(-50, 50), st.floats(0.1, 5))
def test_tost_is_two_one_sided_t_tests_and_a_90_percent_interval(
    values: list[float], reference: float, margin: float
) -> None:
    test = tost(values, reference, margin)
    assert test.n == len(values)
    assert test.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert test.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    if np.std(values) < 1e-6:
        return
    above = stats.ttest_1samp(values, reference - margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, reference + margin, alternative="less").pvalue
    assert test.p == pytest.approx(max(above, below), abs=1e-9)
    interval = stats.ttest_1samp(values, reference).confidence_interval(1 - 2 * ALPHA)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    if abs(test.p - ALPHA) > 1e-6:
        assert test.equivalent == (test.p < ALPHA)
    assert not (test.equivalent and test.different)


@pytest.mark.parametrize(
    ("reference", "equivalent", "different"), [(80.5, True, False), (81.5, False, True), (81.0, False, False)]
)
def test_without_spread_the_answer_is_certain(reference: float, equivalent: bool, different: bool) -> None:
    test = tost([80.0, 80.0, 80.0], reference, 1.0)
    assert (test.equivalent, test.different) == (equivalent, different)
    assert test.p == (0.0 if equivalent else 1.0)


def test_a_wide_interval_is_neither() -> None:
    test = tost([70.0, 80.0, 90.0], 80.0, 1.0)
    assert not test.equivalent
    assert not test.different


@pytest.mark.parametrize(("values", "margin"), [([1.0], 1.0), ([], 1.0), ([1.0, 2.0], 0.0), ([1.0, 2.0], math.nan)])
def test_what_cannot_be_tested_is_refused(values: list[float], margin: float) -> None:
    with pytest.raises(ValueError, match="equivalence test needs"):
        tost(values, 1.0, margin)


def test_one_value_has_no_spread() -> None:
    assert mean_sd([3.0]) == (3.0, None)
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


def test_summary_by_hand() -> None:
    found = summary([1.0, 2.0, 6.0])
    assert (found.n, found.mean, found.median) == (3, 3.0, 2.0)
    assert found.sd == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2
    with pytest.raises(ValueError, match="one value or more"):
        summary([])


def test_an_interval_is_scipys_percentile_bootstrap_and_the_same_each_time() -> None:
    cells = np.random.default_rng(3).normal(80, 2, (4, 60))
    found = intervals(cells)
    theirs = stats.bootstrap(
        (cells,), np.mean, axis=-1, n_resamples=2000, method="percentile", batch=100, rng=np.random.default_rng(0)
    ).confidence_interval
    assert [(i.low, i.high) for i in found if i] == list(zip(theirs.low, theirs.high, strict=True))
    assert intervals(cells) == found
    for cell, interval in zip(cells, found, strict=True):
        assert interval
        # Another way to the same: the normal approximation with the bootstrap's own variance.
        half = 1.96 * cell.std() / math.sqrt(60)
        assert interval.low == pytest.approx(cell.mean() - half, abs=0.25 * half)
        assert interval.high == pytest.approx(cell.mean() + half, abs=0.25 * half)


def test_too_few_seeds_have_no_interval() -> None:
    assert intervals(np.ones((2, MIN_SEEDS - 1))) == [None, None]
    assert suite_interval([[1.0], [2.0, 3.0]]) is None
    assert suite_interval([]) is None


@pytest.mark.parametrize(("n", "stated"), COVERAGE.items())
def test_the_stated_coverage_of_an_interval_is_that_of_a_simulation(n: int, stated: float) -> None:
    cells = np.random.default_rng(n).normal(0, 1, (3000, n))
    # `intervals` gives none below MIN_SEEDS, for the reason that this shows: scipy's own there.
    low, high = stats.bootstrap(
        (cells,), np.mean, axis=-1, n_resamples=1000, method="percentile", batch=50, rng=np.random.default_rng(0)
    ).confidence_interval
    assert float(np.mean((low <= 0) & (high >= 0))) == pytest.approx(stated, abs=0.025)


@pytest.mark.parametrize(("seeds", "stated"), SUITE_COVERAGE.items())
def test_the_stated_coverage_of_a_suite_interval_is_that_of_a_simulation(seeds: int, stated: float) -> None:
    suites = np.random.default_rng(seeds).normal([[[0.0]], [[9.0]], [[1.0]], [[5.0]], [[0.0]]], 1, (5, 500, seeds))
    found = suite_intervals(list(suites.swapaxes(0, 1)))
    assert found[7] == suite_interval(suites[:, 7])  # the same alone
    hits = [interval is not None and interval.low <= 3.0 <= interval.high for interval in found]
    assert float(np.mean(hits)) == pytest.approx(stated, abs=0.045)


def test_a_suite_interval_resamples_within_tasks_only() -> None:
    assert suite_interval([[1.0, 1.0], [9.0, 9.0]]) == suite_interval([[5.0, 5.0], [5.0, 5.0]])
    found = suite_interval([[1.0, 3.0], [10.0, 10.0]])  # the first task's mean is 1, 2 or 3
    assert found
    assert (found.low, found.high) == (5.5, 6.5)
    iqm = suite_interval([[0.0, 4.0], [4.0, 4.0], [4.0, 4.0], [4.0, 100.0]], iqm=True)
    assert iqm
    assert iqm.low >= 3.0 - 1e-9


def test_interquartile_mean_by_hand_and_by_scipy() -> None:
    assert interquartile_mean([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 1000.0]]) == 3.5  # of 2, 3, 4, 5
    scores = np.random.default_rng(0).normal(0, 1, (5, 3))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    ragged = [[1.0, 2.0], [4.0]]
    assert suite_mean(ragged) == 2.75  # by task, whatever the number of seeds


@given(st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=9))
def test_the_sign_flip_test_is_scipys_exact_permutation_test(differences: list[float]) -> None:
    theirs = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert sign_flip_p(differences) == pytest.approx(theirs)


def test_the_sign_flip_test_by_hand() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0]) == 0.25  # only +++ and --- reach 6, of 8
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip_p([3.0, 2.0, -1.0]) == 0.5  # +++ ++- and their mirrors reach 4: 6, 4
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0  # rounding alone decides nothing
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([1.0] * 6) == 2 / 2**6


def test_many_pairs_are_drawn_at_random_and_agree_with_the_t_test_and_wilcoxon() -> None:
    values = np.random.default_rng(5).normal(0.4, 1, MOST_PAIRS + 10)
    found = sign_flip_p(values)
    assert found == sign_flip_p(values)
    assert found == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.25)
    assert (found < ALPHA) == (stats.wilcoxon(values).pvalue < ALPHA)
    exact = sign_flip_p(values[:MOST_PAIRS])
    assert exact == pytest.approx(stats.ttest_1samp(values[:MOST_PAIRS], 0).pvalue, rel=0.25)


def test_the_sign_flip_test_keeps_its_level() -> None:
    draws = np.random.default_rng(8).normal(0, 1, (1500, 8))
    assert np.mean([sign_flip_p(row) <= ALPHA for row in draws]) == pytest.approx(ALPHA, abs=0.017)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, p in zip(p_values, adjusted, strict=True):
        assert raw <= p <= min(1.0, len(p_values) * raw) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(adjusted)[order]) == sorted(adjusted)
    # Step by step, as Holm wrote it: reject while the k-th smallest is at most alpha / (m - k).
    rejected = 0
    while rejected < len(p_values) and (len(p_values) - rejected) * sorted(p_values)[rejected] <= ALPHA:
        rejected += 1
    assert sum(p <= ALPHA for p in adjusted) == rejected


@given(
    st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=6),
    st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=6),
)
def test_probability_of_improvement_is_mann_whitneys_u(ours: list[float], theirs: list[float]) -> None:
    u = stats.mannwhitneyu(ours, theirs).statistic
    assert probability_of_improvement([ours], [theirs]) == pytest.approx(u / (len(ours) * len(theirs)))


def test_probability_of_improvement_is_a_mean_over_tasks() -> None:
    assert probability_of_improvement([[2.0, 2.0], [0.0]], [[1.0], [0.0]]) == 0.75


def test_the_fewest_pairs_can_just_reject() -> None:
    assert pairs_to_test() == 6  # 2 / 2^6 = 0.031, 2 / 2^5 = 0.063
    for tests in (1, 2, 6, 50):
        n = pairs_to_test(tests)
        assert tests * sign_flip_p([1.0] * n) <= ALPHA < tests * sign_flip_p([1.0] * (n - 1))


@pytest.mark.parametrize("effect", [0.7, 1.0])
def test_as_many_pairs_as_stated_show_the_difference_four_times_in_five(effect: float) -> None:
    rng = np.random.default_rng(4)
    pilot = rng.normal(0, 1, 4000)
    pilot = (pilot - pilot.mean()) / pilot.std() + effect
    n = pairs_to_show(pilot)
    assert n
    draws = rng.normal(effect, 1, (200, n))
    found = np.mean([sign_flip_p(row) <= ALPHA for row in draws])
    assert found == pytest.approx(0.8, abs=0.07)
    assert pairs_to_show([1.0, -1.0]) is None
    assert pairs_to_show([1.0, 1.0]) == pairs_to_test()


def test_a_comparison_by_hand() -> None:
    ours = np.array([[0.70, 0.72, 0.74], [0.50, 0.50, 0.53]])
    theirs = np.array([[0.69, 0.70, 0.71], [0.49, 0.48, 0.50]])
    found = compare(ours, theirs, margin=0.03, tests=4)
    assert (found.tasks, found.seeds, found.pairs) == (2, 3, 6)
    assert found.difference == pytest.approx(0.02)  # 1, 2, 3, 1, 2, 3 points
    assert found.p == 2 / 2**6
    assert found.improvement == pytest.approx(np.mean([7 + 0.5, 8]) / 9)
    assert found.seeds_to_test == math.ceil(8 / 2)  # 2 * 4 / 2^8 = 0.031
    assert found.interval
    assert 0.01 <= found.interval.low < 0.02 < found.interval.high <= 0.03
    assert found.equivalence
    assert found.equivalence.mean == pytest.approx(0.02)  # by seed 1, 2 and 3 points
    few = compare(ours[:, :1], theirs[:, :1], margin=0.01)
    assert (few.p, few.interval, few.equivalence, few.seeds_to_test) == (None, None, None, 3)
    for wrong in (ours[:, :2], np.empty((0, 0))):
        with pytest.raises(ValueError, match="same tasks and seeds"):
            compare(ours if wrong.size else wrong, wrong, 0.01)
