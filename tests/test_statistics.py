"""Statistics against scipy's own tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from propulsion.harness.statistics import ALPHA, mean_sd, tost

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
