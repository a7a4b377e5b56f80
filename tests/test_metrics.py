"""Metrics against sklearn, scipy and cases worked by hand."""

from __future__ import annotations

import random
import time
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from propulsion.harness.errors import UserError
from propulsion.harness.metrics import METRICS, NotFinite, base_name, compute, lookup, short_name

QUESTION_METRICS = {
    "choice_accuracy": "Acc",
    "f1a": "F1a",
    "exact_questions": "EM",
    "gender_parity": "parity",
    "token_f1": "F1",
    "exact_match": "EM",
}
ROW_METRICS = sorted(set(METRICS) - set(QUESTION_METRICS))

labels = st.integers(2, 4).flatmap(
    lambda k: st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=60)
)
values = st.lists(st.tuples(st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.5, 2.5, 3.0, 5.0])), min_size=1, max_size=40)


@settings(deadline=None, max_examples=100)
@given(labels)
def test_class_metrics_equal_sklearn(pairs: list[tuple[int, int]]) -> None:
    guess, truth = (np.array(column) for column in zip(*pairs, strict=True))
    scores = compute(["accuracy", "matthews_correlation", "macro_f1"], guess, truth)
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, guess), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores["matthews_correlation"] == pytest.approx(matthews_corrcoef(truth, guess), abs=1e-12)
        assert scores["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0), abs=1e-12)
        expected = f1_score(truth == 1, guess == 1, zero_division=0)
    assert compute(["f1"], guess, truth)["f1"] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=150)
@given(values)
def test_correlations_equal_scipy_and_never_are_nan(pairs: list[tuple[float, float]]) -> None:
    guess, truth = (np.array(column) for column in zip(*pairs, strict=True))
    scores = compute(["pearson", "spearman"], guess, truth)
    if np.ptp(guess) == 0 or np.ptp(truth) == 0:
        assert scores == {"pearson": 0.0, "spearman": 0.0}
        return
    assert all(-1.0 <= score <= 1.0 for score in scores.values())
    assert scores["spearman"] == pytest.approx(stats.spearmanr(guess, truth).statistic, abs=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            expected = stats.pearsonr(guess, truth).statistic
        except stats.NearConstantInputWarning:  # scipy itself does not stand by its number here
            return
    assert scores["pearson"] == pytest.approx(expected, abs=1e-7)


def test_by_hand() -> None:
    # Two hits, one false alarm, one miss, two right rejections: F1 = 4 / 6, MCC = (2*2 - 1*1) / 9.
    scores = compute(["accuracy", "f1", "matthews_correlation"], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0])
    assert scores == pytest.approx({"accuracy": 4 / 6, "f1": 4 / 6, "matthews_correlation": 3 / 9})
    # Centred 1..4 against centred (1, 3, 2, 4): (2.25 - 0.25 - 0.25 + 2.25) / 5; ranks are the values.
    assert compute(["pearson", "spearman"], [1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(
        {"pearson": 0.8, "spearman": 0.8}
    )
    assert list(compute(["spearman", "pearson"], [1.0, 2.0], [2.0, 1.0])) == ["spearman", "pearson"]


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson", "spearman"])
@pytest.mark.parametrize("constant", [0, 1, -3])
def test_a_side_that_never_varies_scores_zero(name: str, constant: int) -> None:
    varied, flat = [0, 1, 1, 0, 2], [constant] * 5
    assert compute([name], flat, varied) == {name: 0.0}
    assert compute([name], varied, flat) == {name: 0.0}
    assert compute([name], flat, flat) == {name: 0.0}


def test_f1_without_a_positive_row_is_zero() -> None:
    assert compute(["f1"], [0, 0], [0, 0]) == {"f1": 0.0}
    assert compute(["f1"], [0, 0], [1, 1]) == {"f1": 0.0}


def test_correlation_survives_extreme_values() -> None:
    truth = [0.0, 1.0, 2.0, 3.0]
    for guess in (
        [1e308, 1.1e308, 1.2e308, 1.3e308],
        [1e-310, 2e-310, 3e-310, 4e-310],
        [2**52, 2**52 + 1, 2**52 + 2, 2**52 + 3],
    ):
        assert compute(["pearson"], guess, truth)["pearson"] == pytest.approx(1.0, abs=1e-9)
    neighbours = np.array([3.0, np.nextafter(3.0, 4.0)])
    assert compute(["pearson"], neighbours, [0.0, 1.0])["pearson"] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ROW_METRICS)
def test_not_finite_is_an_error(name: str, bad: float) -> None:
    with pytest.raises(NotFinite, match=r"predictions\[1\]"):
        compute([name], [1.0, bad], [1.0, 0.0])
    with pytest.raises(NotFinite, match=r"references\[0\]"):
        compute([name], [1.0, 0.0], [bad, 0.0])


@pytest.mark.parametrize(
    ("guess", "truth", "message"),
    [
        ([1, 0], [1], "2 predictions for 1 references"),
        ([], [], "n >= 1"),
        ([[1, 0]], [[1, 0]], "shape"),
        (["a"], ["b"], "must be numbers"),
        ([0.5, 1.0], [0, 1], "class ids"),
    ],
)
def test_bad_shapes_are_errors(guess: list, truth: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute(["accuracy"], guess, truth)


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown metric 'accurracy': did you mean accuracy"):
        compute(["accurracy"], [1], [1])


def test_display_names() -> None:
    assert {name: lookup(name).short for name in METRICS} == QUESTION_METRICS | {
        "accuracy": "Acc",
        "f1": "F1",
        "matthews_correlation": "MCC",
        "pearson": "r",
        "spearman": "ρ",
        "macro_f1": "F1",
    }
    assert short_name("mean") == "mean"
    assert all(metric.greater_is_better for metric in METRICS.values())
    assert short_name("accuracy_mm") == "Acc"
    assert base_name("accuracy_mm") == "accuracy"
    assert short_name("accuracyx") == "accuracyx"


def test_leaves_no_file_and_no_random_state_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    state = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()  # noqa: NPY002
    for name in ROW_METRICS:
        compute([name], [0, 1, 1], [0, 1, 0])
    after = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()  # noqa: NPY002
    assert after == state
    assert list(tmp_path.iterdir()) == []


def test_quick_enough_to_call_at_every_evaluation() -> None:
    rows = np.arange(1000) % 2
    compute(["accuracy"], rows, rows)
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        compute(["accuracy"], rows, rows)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.1  # about 0.007 s on a quiet core
