"""Scores by three rules from one run: best, last and heldout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EvalPrediction

from propulsion.harness import metrics
from propulsion.harness.encode import EvaluationRows
from propulsion.harness.settings import TaskSpec

ALL, SELECT, REPORT = "all", "select", "report"  # which evaluation rows a score is over


class Diverged(Exception):
    """Training left the finite numbers."""


class Scorer:
    """`compute_metrics` of the trainer: scores on all rows and on both halves, as flat `rows/metric` keys."""

    def __init__(self, task: TaskSpec, rows: EvaluationRows) -> None:
        self.task = task
        self.rows = rows

    def __call__(self, output: EvalPrediction) -> dict[str, float]:
        """Scores from logits (n, classes) or values (n, 1) and labels (n,), in the order of the rows.

        Raises:
            Diverged: a logit is not finite.
        """
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(output.label_ids)
        if not np.array_equal(labels, np.asarray(self.rows.rows["labels"], dtype=labels.dtype)):
            raise RuntimeError("the predictions are not in the order of the rows; the halves would mix")
        if not np.isfinite(logits).all():
            raise Diverged("a logit is not finite")
        predictions = logits.reshape(-1) if self.task.kind == "regression" else logits.argmax(axis=-1)
        margins = logits[:, 1] - logits[:, 0] if self.rows.questions else predictions
        selects = self.rows.selects
        masks = {ALL: np.ones_like(selects), SELECT: selects, REPORT: ~selects}
        return {
            f"{name}/{metric}": score
            for name, mask in masks.items()
            for metric, score in self._scores(predictions, margins, labels, mask).items()
        }

    def _scores(
        self, predictions: np.ndarray, margins: np.ndarray, labels: np.ndarray, mask: np.ndarray
    ) -> dict[str, float]:
        scores: dict[str, float] = {}
        for index, suffix in enumerate(self.rows.suffixes):
            rows, questions = np.flatnonzero(mask & (self.rows.part == index)), None
            if self.rows.questions:
                rows = rows[np.argsort(self.rows.place[rows])]  # of two candidates alike the first counts
                questions = self.rows.questions.take(rows, margins[rows])
            values = metrics.compute(self.task.metrics, predictions[rows], labels[rows], questions)
            scores |= {f"{metric}{suffix}": value for metric, value in values.items()}
        return scores


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during training. `loss` is the evaluation loss, `train_loss` the mean since the last one."""

    step: int
    epoch: float
    loss: float
    train_loss: float | None
    seconds: float  # training time so far, evaluation left out
    scores: dict[str, dict[str, float]]  # all | select | report -> metric -> score

    def as_record(self) -> dict[str, Any]:
        """The history entry of the record: scores are those on all rows."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss": self.loss,
            "train_loss": self.train_loss,
            "seconds": self.seconds,
            "scores": self.scores[ALL],
        }


def read_history(log: list[dict[str, Any]]) -> list[Evaluation]:
    """The evaluations in a trainer's log history."""
    history: list[Evaluation] = []
    losses: list[float] = []
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
        if "eval_loss" not in entry:
            continue
        scores: dict[str, dict[str, float]] = {ALL: {}, SELECT: {}, REPORT: {}}
        for key, value in entry.items():
            rows, _, metric = key.removeprefix("eval_").partition("/")
            if metric:
                scores[rows][metric] = value
        history.append(
            Evaluation(
                step=entry["step"],
                epoch=entry["epoch"],
                loss=entry["eval_loss"],
                train_loss=sum(losses) / len(losses) if losses else None,
                seconds=entry["eval_train_seconds"],
                scores=scores,
            )
        )
        losses = []
    return history


def summarize(history: list[Evaluation], primary: str, best_by: str = "primary") -> dict[str, Any]:
    """`best`, `last` and `heldout` scores and the step of `best`; None where there was no evaluation.

    `best` follows the authors: the best evaluation on the reporting rows, by the primary metric or, as in
    their notebooks, by the lowest loss. The earliest wins a tie.
    """
    if not history:
        return {"best": None, "last": None, "heldout": None, "best_step": None}
    best = best_evaluation(history, primary, best_by)
    selected = max(history, key=lambda e: e.scores[SELECT][primary])
    return {
        "best": best.scores[ALL],
        "last": history[-1].scores[ALL],
        "heldout": selected.scores[REPORT],
        "best_step": best.step,
    }


def best_evaluation(history: list[Evaluation], primary: str, best_by: str = "primary") -> Evaluation:
    """The best of one or more evaluations, by the rule of `summarize`."""
    if best_by == "loss":
        return min(history, key=lambda e: e.loss)
    return max(history, key=lambda e: e.scores[ALL][primary])
