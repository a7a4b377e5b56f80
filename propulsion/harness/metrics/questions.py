"""Metrics of questions with several rows: a choice, a set of answers, a pair, the best of many candidates."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propulsion.harness.metrics.base import QuestionMetric
from propulsion.harness.metrics.rows import F1


class ChoiceAccuracy(QuestionMetric):
    """Share of questions whose row of the highest margin is a right one; of equal margins the first counts."""

    name, short = "choice_accuracy", "Acc"

    @staticmethod
    def over_questions(margins: NDArray[Any], **columns: Any) -> float:
        chosen = best_rows(margins, columns["group"])
        return float(np.mean([columns["label"][row] == 1 for row in chosen.values()]))


class F1a(QuestionMetric):
    """MultiRC's F1 over all answers of all questions together."""

    name, short, columns = "f1a", "F1a", ("label",)

    @staticmethod
    def over_questions(margins: NDArray[Any], **columns: Any) -> float:
        return F1.score((margins > 0).astype(int), np.asarray(columns["label"]))


class ExactQuestions(QuestionMetric):
    """MultiRC's exact match: share of questions with every answer judged right."""

    name, short = "exact_questions", "EM"

    @staticmethod
    def over_questions(margins: NDArray[Any], **columns: Any) -> float:
        right: dict[int, bool] = {}
        for margin, label, group in zip(margins, columns["label"], columns["group"], strict=True):
            right[group] = right.get(group, True) and (margin > 0) == (label == 1)
        return float(np.mean(list(right.values())))


class GenderParity(QuestionMetric):
    """Share of pairs with the same prediction for both rows; a row whose partner is missing counts nowhere."""

    name, short, columns = "gender_parity", "parity", ("group",)

    @staticmethod
    def over_questions(margins: NDArray[Any], **columns: Any) -> float:
        pairs: dict[int, list[bool]] = {}
        for margin, group in zip(margins, columns["group"], strict=True):
            pairs.setdefault(group, []).append(bool(margin > 0))
        alike = [len(set(pair)) == 1 for pair in pairs.values() if len(pair) > 1]
        return float(np.mean(alike)) if alike else 0.0


class TokenF1(QuestionMetric):
    """ReCoRD's F1: words that the best candidate shares with the right answer nearest to it, mean over queries."""

    name, short, columns = "token_f1", "F1", ("group", "candidate", "answers")

    @staticmethod
    def over_questions(margins: NDArray[Any], **columns: Any) -> float:
        return score_answers(*_answered(margins, **columns))[0]


class ExactMatch(QuestionMetric):
    """ReCoRD's exact match: share of queries whose best candidate is a right answer, after normalisation."""

    name, short, columns = "exact_match", "EM", ("group", "candidate", "answers")

    @staticmethod
    def over_questions(margins: NDArray[Any], **columns: Any) -> float:
        return score_answers(*_answered(margins, **columns))[1]


def best_rows(margins: Sequence[float] | NDArray[Any], groups: Sequence[int] | NDArray[Any]) -> dict[int, int]:
    """Group -> the place of its row with the highest margin, the first of equal ones."""
    best: dict[int, int] = {}
    for row, group in enumerate(groups):
        if group not in best or margins[row] > margins[best[group]]:
            best[int(group)] = row
    return best


def _answered(
    margins: NDArray[Any], group: list[int], candidate: list[str], answers: list[list[str]]
) -> tuple[dict[int, str], dict[int, list[str]]]:
    chosen = best_rows(margins, group)
    return {number: candidate[row] for number, row in chosen.items()}, dict(zip(group, answers, strict=True))


def score_answers(predictions: Mapping[Any, str], answers: Mapping[Any, Sequence[str]]) -> tuple[float, float]:
    """(token F1, exact match), each the mean over the queries of `answers` of the best over a query's answers.

    As ReCoRD's evaluation script: a query without a prediction scores 0 in both.
    """
    f1 = exact = 0.0
    for query, texts in answers.items():
        if query in predictions:
            f1 += max(_shared_words(predictions[query], text) for text in texts)
            exact += max(normalize(predictions[query]) == normalize(text) for text in texts)
    return f1 / len(answers), exact / len(answers)


def normalize(answer: str) -> str:
    """SQuAD's form of an answer: lower case, no ASCII punctuation, no articles, single spaces."""
    text = "".join(char for char in answer.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _shared_words(prediction: str, answer: str) -> float:
    """F1 of two bags of words; 0.0 where they share none, also when both are empty."""
    guess, truth = normalize(prediction).split(), normalize(answer).split()
    shared = (Counter(guess) & Counter(truth)).total()
    return 2 * shared / (len(guess) + len(truth)) if shared else 0.0
