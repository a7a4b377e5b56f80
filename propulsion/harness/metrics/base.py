"""What every metric is: an `evaluate.Metric` in memory, over rows or over questions of several rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray


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


@dataclass(frozen=True)
class Questions:
    """What belongs together among n rows.

    `group` (n,): the same number for the rows of a question. `candidate`, `answers`: what each row proposes and the
    texts that are right, where the task has them. `margins` (n,): how much each row speaks for class 1.
    """

    group: NDArray[Any]
    candidate: list[str] | None = None
    answers: list[list[str]] | None = None
    margins: NDArray[Any] | None = None

    def take(self, rows: NDArray[Any], margins: NDArray[Any] | None = None) -> Questions:
        """The rows at these places, in this order, with these margins."""
        candidate = None if self.candidate is None else [self.candidate[row] for row in rows]
        answers = None if self.answers is None else [self.answers[row] for row in rows]
        return Questions(self.group[rows], candidate, answers, margins)


class QuestionMetric(Metric):
    """A score over questions of several rows. Subclasses give `columns` and `over_questions`.

    The predictions are how much each row speaks for class 1, above 0 for class 1; the references are the
    `columns` of `Questions` that the metric needs, and the label.
    """

    columns: ClassVar[tuple[str, ...]] = ("label", "group")

    def _info(self) -> evaluate.MetricInfo:
        types: dict[str, Any] = {
            "label": datasets.Value("int64"),
            "group": datasets.Value("int64"),
            "candidate": datasets.Value("string"),
            "answers": datasets.List(datasets.Value("string")),
        }
        references = {name: types[name] for name in self.columns}
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions: margins, shape (n,); references: one mapping for each row",
            features=datasets.Features({"predictions": datasets.Value("float64"), "references": references}),
        )

    def _compute(self, predictions: ArrayLike, references: Any) -> dict[str, float]:
        columns = {name: [row[name] for row in references] for name in self.columns}
        return {self.name: self.over_questions(np.asarray(predictions), **columns)}

    @staticmethod
    def over_questions(margins: NDArray[Any], **columns: Any) -> float:
        """The score of n rows, n >= 1, with the columns that the metric names."""
        raise NotImplementedError
