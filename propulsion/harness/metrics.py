"""The metrics of the benchmarks as `evaluate.Metric` classes: no download, no network, no files left behind.

Every metric is defined on every input it accepts. The cases where the textbook formula divides zero by zero
score 0.0: a correlation (Matthews, Pearson, Spearman) of something that never varies, and F1 with no positive
row on either side. A NaN or infinite prediction is an error, so a diverged run never turns into a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from propulsion.harness.errors import unknown


class NotFinite(ValueError):
    """A prediction or a label is NaN or infinite."""


class Metric(evaluate.Metric):
    """One score, in memory. Subclasses give `name`, `short`, `dtype` and `score`."""

    name: ClassVar[str]  # as in task files and records
    short: ClassVar[str]  # as in table headers
    dtype: ClassVar[str] = "int64"  # of one prediction and one label
    greater_is_better: ClassVar[bool] = True

    def __init__(self, **options: Any) -> None:
        super().__init__(keep_in_memory=True, **options)

    def _build_data_dir(self) -> str:
        return ""  # evaluate makes a folder in the user's cache here; nothing is ever written to it

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.dtype)
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions and references, each of shape (n,)",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {self.name: self.score(np.asarray(predictions), np.asarray(references))}

    @staticmethod
    def score(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """The score of two arrays of shape (n,), n >= 1."""
        raise NotImplementedError


class Accuracy(Metric):
    """Share of rows with the right class."""

    name, short = "accuracy", "Acc"

    @staticmethod
    def score(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        return float(np.mean(predictions == references))


class F1(Metric):
    """Binary F1 of class 1; 0.0 when class 1 is neither predicted nor there."""

    name, short = "f1", "F1"

    @staticmethod
    def score(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        hits = np.sum((predictions == 1) & (references == 1))
        named = np.sum(predictions == 1) + np.sum(references == 1)
        return float(2 * hits / named) if named else 0.0


class MatthewsCorrelation(Metric):
    """Matthews correlation, any number of classes (R_K, Gorodkin 2004); 0.0 when either side never varies."""

    name, short = "matthews_correlation", "MCC"

    @staticmethod
    def score(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        classes = np.union1d(predictions, references)
        guess = (predictions[:, None] == classes).astype(np.float64)
        truth = (references[:, None] == classes).astype(np.float64)
        guess -= guess.mean(axis=0)
        truth -= truth.mean(axis=0)
        norm = np.sqrt(np.sum(guess**2)) * np.sqrt(np.sum(truth**2))
        return _clip(np.sum(guess * truth) / norm) if norm else 0.0


class Pearson(Metric):
    """Pearson correlation; 0.0 when either side never varies."""

    name, short, dtype = "pearson", "r", "float64"

    @staticmethod
    def score(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        return _correlation(predictions, references)


class Spearman(Metric):
    """Spearman rank correlation, ties at their mean rank; 0.0 when either side never varies."""

    name, short, dtype = "spearman", "ρ", "float64"

    @staticmethod
    def score(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        return _correlation(rankdata(predictions), rankdata(references))


METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Accuracy, F1, MatthewsCorrelation, Pearson, Spearman)
}


def lookup(name: str) -> type[Metric]:
    """The metric class of that name. Raises UserError with the nearest names when there is none."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def compute(names: Sequence[str], predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Scores of n rows.

    Args:
        names: metrics to compute, as in `METRICS`.
        predictions: shape (n,), class ids, or values for a regression.
        references: shape (n,), the labels.

    Returns:
        metric name -> score, in the order of `names`; accuracy and F1 in 0..1, correlations in -1..1.

    Raises:
        UserError: a metric of that name does not exist.
        NotFinite: a prediction or a label is NaN or infinite.
        ValueError: the arrays are empty, not one-dimensional, of different lengths, or not whole numbers
            where classes are meant.
    """
    classes = [lookup(name) for name in names]
    guess, truth = _column("predictions", predictions), _column("references", references)
    if len(guess) != len(truth):
        raise ValueError(f"{len(guess)} predictions for {len(truth)} references")
    scores: dict[str, float] = {}
    for metric in classes:
        columns = {"predictions": guess, "references": truth}
        scores |= metric().compute(**{side: _as(metric, side, column) for side, column in columns.items()})
    return scores


def short_name(score: str) -> str:
    """Header name of a score: `accuracy` -> Acc, and the same for a part of a task, as in `accuracy_mm`."""
    return METRICS[name].short if (name := base_name(score)) in METRICS else score


def base_name(score: str, names: Iterable[str] = METRICS) -> str:
    """The metric a score name starts with (the longest that fits), or the name itself."""
    fits = (name for name in names if score == name or score.startswith(f"{name}_"))
    return max(fits, key=len, default=score)


def _column(side: str, values: ArrayLike) -> NDArray[Any]:
    column = np.asarray(values)
    if column.ndim != 1 or len(column) == 0:
        raise ValueError(f"{side} must have the shape (n,) with n >= 1, not {column.shape}")
    if column.dtype.kind not in "biuf":
        raise ValueError(f"{side} must be numbers, not {column.dtype}")
    if not np.all(np.isfinite(column)):
        bad = int(np.argmin(np.isfinite(column)))
        raise NotFinite(f"{side}[{bad}] is {column[bad]}")
    return column


def _as(metric: type[Metric], side: str, column: NDArray[Any]) -> NDArray[Any]:
    if metric.dtype == "int64" and not np.array_equal(column, np.trunc(column)):
        raise ValueError(f"{metric.name} needs class ids, and {side} holds other numbers")
    return column.astype(metric.dtype)


def _correlation(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Pearson's r in a form that neither overflows nor loses a small spread around a large mean."""
    x, y = _standard(x), _standard(y)
    return _clip(float(np.dot(x, y)))


def _standard(x: NDArray[Any]) -> NDArray[Any]:
    """`x` centred, of length 1; zeros when it never varies."""
    x = x.astype(np.float64)
    if x.min() == x.max():
        return np.zeros_like(x)
    x = np.ldexp(x, -np.frexp(np.abs(x).max())[1])  # a power of two: exact, so distinct values stay distinct
    for _ in range(2):  # the second time takes out what rounding left of a large mean
        x = x - x.mean()
        x = x / np.abs(x).max()
    return x / np.linalg.norm(x)


def _clip(r: float) -> float:
    """Rounding can leave a correlation a hair outside -1..1."""
    return float(min(1.0, max(-1.0, r)))
