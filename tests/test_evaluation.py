"""The three rules: best, last and heldout, against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import EvalPrediction

from propulsion.harness.encode import evaluation_rows
from propulsion.harness.evaluation import Diverged, Evaluation, Scorer, read_history, summarize
from tests.conftest import compose_settings


def evaluation(step: int, full: float, select: float, report: float, loss: float = 1.0) -> Evaluation:
    scores = {"all": {"accuracy": full}, "select": {"accuracy": select}, "report": {"accuracy": report}}
    return Evaluation(step, step / 10, loss, None, 0.0, scores)


HISTORY = [
    evaluation(10, full=0.70, select=0.90, report=0.50, loss=0.9),
    evaluation(20, full=0.80, select=0.75, report=0.85, loss=0.7),
    evaluation(30, full=0.80, select=0.80, report=0.80, loss=0.5),
    evaluation(40, full=0.60, select=0.55, report=0.65, loss=0.6),
]


def test_best_is_the_earliest_maximum_last_the_end_and_heldout_is_scored_where_it_was_not_selected() -> None:
    found = summarize(HISTORY, "accuracy")
    assert found["best"] == {"accuracy": 0.80}
    assert found["best_step"] == 20
    assert found["last"] == {"accuracy": 0.60}
    assert found["heldout"] == {"accuracy": 0.50}  # step 10 wins the selecting half; the other half says 0.50


def test_best_by_loss_is_the_notebooks_rule() -> None:
    found = summarize(HISTORY, "accuracy", best_by="loss")
    assert found["best_step"] == 30


def test_without_an_evaluation_there_are_no_scores() -> None:
    assert summarize([], "accuracy") == {"best": None, "last": None, "heldout": None, "best_step": None}


def rows(count: int, start: int = 0) -> Dataset:
    ids = [[7] * (1 + (start + i) * 37 % 11) for i in range(count)]
    return Dataset.from_dict(
        {"input_ids": ids, "labels": [(start + i) % 2 for i in range(count)], "length": [len(i) for i in ids]}
    )


@given(st.integers(2, 60), st.integers(2, 40))
def test_halves_split_every_part_evenly_and_follow_their_rows(matched: int, mismatched: int) -> None:
    joined = evaluation_rows({"": rows(matched), "_mm": rows(mismatched, start=1)})
    assert sorted(joined.rows["length"]) == list(joined.rows["length"])
    for index, size in enumerate((matched, mismatched)):
        assert (joined.part == index).sum() == size
        assert joined.selects[joined.part == index].sum() == size // 2
    again = evaluation_rows({"": rows(matched), "_mm": rows(mismatched, start=1)})
    assert (again.selects == joined.selects).all()


def test_scorer_scores_each_part_and_each_half_alone() -> None:
    settings = compose_settings("task=mnli")
    joined = evaluation_rows({"": rows(8), "_mm": rows(6, start=1)})
    labels = np.asarray(joined.rows["labels"])
    right = np.where(joined.part == 0, joined.selects, True)  # matched: right on one half; mismatched: everywhere
    logits = np.eye(3)[np.where(right, labels, 2)]
    scores = Scorer(settings.task, joined)(EvalPrediction(predictions=logits, label_ids=labels))
    assert scores["all/accuracy"] == 0.5
    assert (scores["select/accuracy"], scores["report/accuracy"]) == (1.0, 0.0)
    assert scores["all/accuracy_mm"] == scores["select/accuracy_mm"] == scores["report/accuracy_mm"] == 1.0


def test_scorer_reads_values_in_regression_and_refuses_what_is_not_finite() -> None:
    settings = compose_settings("task=stsb")
    joined = evaluation_rows({"": rows(10)})
    labels = np.asarray(joined.rows["labels"], dtype=np.float64)
    scorer = Scorer(settings.task, joined)
    scores = scorer(EvalPrediction(predictions=(2 * labels - 7)[:, None], label_ids=labels))
    assert scores["all/pearson"] == pytest.approx(1.0)
    with pytest.raises(RuntimeError, match="not in the order of the rows"):
        scorer(EvalPrediction(predictions=labels[:, None], label_ids=labels[::-1]))
    broken = labels[:, None].copy()
    broken[3] = np.nan
    with pytest.raises(Diverged):
        scorer(EvalPrediction(predictions=broken, label_ids=labels))


def test_history_is_read_back_from_the_trainers_log() -> None:
    log = [
        {"loss": 2.0, "step": 5},
        {"loss": 1.0, "step": 10},
        {
            "eval_loss": 0.5,
            "eval_all/f1": 0.25,
            "eval_select/f1": 0.5,
            "eval_report/f1": 0.75,
            "eval_runtime": 3.0,
            "eval_train_seconds": 7.0,
            "step": 10,
            "epoch": 1.0,
        },
        {"train_runtime": 1.0, "train_loss": 1.5, "step": 10},
    ]
    (only,) = read_history(log)
    assert (only.step, only.loss, only.train_loss, only.seconds) == (10, 0.5, 1.5, 7.0)
    assert only.scores == {"all": {"f1": 0.25}, "select": {"f1": 0.5}, "report": {"f1": 0.75}}
    assert only.as_record()["scores"] == {"f1": 0.25}
