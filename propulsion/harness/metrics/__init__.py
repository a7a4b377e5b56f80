"""The metrics of the benchmarks as `evaluate.Metric` classes: no download, no network, no files left behind.

Every metric is defined on every input it accepts. The cases where the textbook formula divides zero by zero
score 0.0: a correlation (Matthews, Pearson, Spearman) of something that never varies, and F1 with no positive
row on either side. Where several rows make a question (`Questions`), a metric may score questions. A NaN or
infinite prediction is an error, so a diverged run never turns into a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from propulsion.harness.errors import unknown
from propulsion.harness.metrics.base import Metric, QuestionMetric, Questions
from propulsion.harness.metrics.questions import (
    ChoiceAccuracy,
    ExactMatch,
    ExactQuestions,
    F1a,
    GenderParity,
    TokenF1,
    best_rows,
    normalize,
    score_answers,
)
from propulsion.harness.metrics.rows import F1, Accuracy, MacroF1, MatthewsCorrelation, Pearson, Spearman

__all__ = [
    "MEAN",
    "METRICS",
    "Metric",
    "NotFinite",
    "QuestionMetric",
    "Questions",
    "base_name",
    "best_rows",
    "compute",
    "lookup",
    "normalize",
    "score_answers",
    "short_name",
]


class NotFinite(ValueError):
    """A prediction or a label is NaN or infinite."""


METRICS: dict[str, type[Metric]] = {
    metric.name: metric
    for metric in (
        *(Accuracy, F1, MatthewsCorrelation, Pearson, Spearman, MacroF1),
        *(ChoiceAccuracy, F1a, ExactQuestions, GenderParity, TokenF1, ExactMatch),
    )
}
MEAN = "mean"  # of a task's other metrics, where its benchmark counts that


def lookup(name: str) -> type[Metric]:
    """The metric class of that name. Raises UserError with the nearest names when there is none."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def compute(
    names: Sequence[str], predictions: ArrayLike, references: ArrayLike, questions: Questions | None = None
) -> dict[str, float]:
    """Scores of n rows.

    Args:
        names: metrics to compute, as in `METRICS`, or `mean`, the mean of the others.
        predictions: shape (n,), class ids, or values for a regression.
        references: shape (n,), the labels.
        questions: what belongs together, with margins; for the metrics over questions.

    Returns:
        metric name -> score, in the order of `names`; accuracy and F1 in 0..1, correlations in -1..1.

    Raises:
        UserError: a metric of that name does not exist.
        NotFinite: a prediction or a label is NaN or infinite.
        ValueError: the arrays are empty, not one-dimensional, of different lengths, or not whole numbers
            where classes are meant.
    """
    classes = [lookup(name) for name in names if name != MEAN]
    guess, truth = _column("predictions", predictions), _column("references", references)
    if len(guess) != len(truth):
        raise ValueError(f"{len(guess)} predictions for {len(truth)} references")
    scores: dict[str, float] = {}
    for metric in classes:
        if issubclass(metric, QuestionMetric):
            scores |= _compute_over_questions(metric, truth, questions)
            continue
        columns = {"predictions": guess, "references": truth}
        scores |= metric().compute(**{side: _as(metric, side, column) for side, column in columns.items()})
    return scores if MEAN not in names else {**scores, MEAN: float(np.mean(list(scores.values())))}


def _compute_over_questions(
    metric: type[QuestionMetric], labels: NDArray[Any], questions: Questions | None
) -> dict[str, float]:
    if questions is None or questions.margins is None:
        raise ValueError(f"{metric.name} scores questions: give `questions` with margins")
    margins = _column("margins", questions.margins)
    if not len(margins) == len(questions.group) == len(labels):
        raise ValueError(f"{len(margins)} margins, {len(questions.group)} groups and {len(labels)} references")
    given = {"label": _as(metric, "references", labels, "int64").tolist(), "group": questions.group.tolist()}
    given |= {"candidate": questions.candidate, "answers": questions.answers}
    columns = [given[name] for name in metric.columns]
    if any(column is None for column in columns):
        raise ValueError(f"{metric.name} needs {', '.join(metric.columns)} of every row")
    rows = [dict(zip(metric.columns, row, strict=True)) for row in zip(*columns, strict=True)]
    scores: dict[str, float] = metric().compute(predictions=margins.astype(np.float64), references=rows)
    return scores


def short_name(score: str) -> str:
    """Header name of a score: `accuracy` -> Acc, and the same for a part of a task, as in `accuracy_mm`."""
    name = base_name(score, (*METRICS, MEAN))
    return METRICS[name].short if name in METRICS else name


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


def _as(metric: type[Metric], side: str, column: NDArray[Any], dtype: str = "") -> NDArray[Any]:
    if (dtype or metric.dtype) == "int64" and not np.array_equal(column, np.trunc(column)):
        raise ValueError(f"{metric.name} needs class ids, and {side} holds other numbers")
    return column.astype(dtype or metric.dtype)
