"""Metrics over questions: against scikit-learn, an independent pass over dictionaries, and cases worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from propulsion.harness.metrics import NotFinite, Questions, compute, normalize, score_answers

ROWS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 1), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0])),
    min_size=1,
    max_size=40,
)


def score(
    names: list[str], margins: list[float], labels: list[int], groups: list[int], **texts: Any
) -> dict[str, float]:
    questions = Questions(np.array(groups), margins=np.array(margins), **texts)
    return compute(names, (np.array(margins) > 0).astype(int), labels, questions)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_questions_equal_a_plain_pass_over_them(rows: list[tuple[int, int, float]]) -> None:
    """Each question on its own, by other means than the metrics': lists by question, scikit-learn for F1a."""
    groups, labels, margins = (list(column) for column in zip(*rows, strict=True))
    scores = score(["choice_accuracy", "f1a", "exact_questions", "gender_parity", "mean"], margins, labels, groups)
    questions = [[row for row in rows if row[0] == group] for group in sorted(set(groups))]
    chosen = [question[int(np.argmax([row[2] for row in question]))][1] for question in questions]
    assert scores["choice_accuracy"] == pytest.approx(np.mean(chosen))
    guesses = [int(margin > 0) for margin in margins]
    assert scores["f1a"] == pytest.approx(f1_score(labels, guesses, zero_division=0))
    assert scores["exact_questions"] == pytest.approx(
        np.mean([[int(row[2] > 0) for row in question] == [row[1] for row in question] for question in questions])
    )
    pairs = [{row[2] > 0 for row in question} for question in questions if len(question) > 1]
    assert scores["gender_parity"] == pytest.approx(np.mean([len(pair) == 1 for pair in pairs]) if pairs else 0.0)
    assert scores["mean"] == pytest.approx(np.mean([value for name, value in scores.items() if name != "mean"]))


def test_choice_by_hand() -> None:
    """Right; a tie, of which the first row counts and is wrong; a tie whose first row is right; wrong."""
    groups, labels = [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 1, 0, 1, 0]
    margins = [-3.0, -1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 2.0]
    assert score(["choice_accuracy"], margins, labels, groups) == {"choice_accuracy": 0.5}


def test_multirc_by_hand() -> None:
    """Two of three questions in whole; 2 hits, 1 false alarm, 1 miss: F1a = 4 / 6. A margin of 0 is class 0."""
    groups, labels = [0, 0, 1, 1, 1, 2], [1, 0, 1, 0, 1, 0]
    margins = [1.0, -1.0, 2.0, 1.0, -1.0, 0.0]
    found = score(["f1a", "exact_questions", "mean"], margins, labels, groups)
    assert found == pytest.approx({"f1a": 4 / 6, "exact_questions": 2 / 3, "mean": 2 / 3})


def test_parity_by_hand() -> None:
    """Alike, not alike, and a row without its partner, which is no pair."""
    assert score(["gender_parity"], [1.0, 2.0, -1.0, 1.0, 3.0], [0] * 5, [0, 0, 1, 1, 2]) == {"gender_parity": 0.5}
    assert score(["gender_parity"], [1.0], [0], [0]) == {"gender_parity": 0.0}


RECORD = {  # query 0: "The U.S. Army"; query 1: Bhutto by two names; query 2: nothing in common
    "groups": [0, 0, 1, 1, 2],
    "labels": [1, 0, 0, 0, 0],
    "candidate": ["us army", "Iraq", "Asif Bhutto", "Pakistan", "Rome"],
    "answers": [["The U.S. Army"]] * 2 + [["Benazir Bhutto", "Bhutto"]] * 2 + [["Paris", "France"]],
}


def test_record_by_hand() -> None:
    """Normalised equal: 1, 1. "asif bhutto" against the nearest, "bhutto": 2 * 1 / 3, no match. 0, 0."""
    found = score(["token_f1", "exact_match", "mean"], [1.0, 0.0, 3.0, 2.0, -9.0], **RECORD)
    assert found == pytest.approx({"token_f1": (1 + 2 / 3) / 3, "exact_match": 1 / 3, "mean": (1 + 1 / 3) / 3})
    tie = score(["token_f1", "exact_match"], [0.0] * 5, **RECORD)
    assert tie == pytest.approx({"token_f1": (1 + 2 / 3) / 3, "exact_match": 1 / 3})


def test_a_query_without_a_prediction_scores_zero() -> None:
    answers = {"a": ["Anna"], "b": ["Ben Smith"], "c": ["Carl"]}
    assert score_answers({"a": "Anna", "b": "Ben"}, answers) == pytest.approx(((1 + 2 / 3) / 3, 1 / 3))
    assert score_answers({}, answers) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("  The  Beatles ", "beatles"),
        ("A.B.C.", "abc"),
        ("an apple a day", "apple day"),
        ("Theatre and Anna", "theatre and anna"),  # articles are whole words
        ("Jean-Luc", "jeanluc"),
        ("“The” Café", "“ ” café"),  # only ASCII punctuation goes
        ("the", ""),
    ],
)
def test_the_official_normalisation(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


def test_answers_that_normalise_to_nothing_share_no_word_and_are_equal() -> None:
    assert score_answers({0: "The"}, {0: ["a"]}) == (0.0, 1.0)


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="choice_accuracy scores questions"):
        compute(["choice_accuracy"], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="token_f1 needs group, candidate, answers"):
        score(["token_f1"], [0.0, 1.0], [0, 1], [0, 0])
    with pytest.raises(ValueError, match="1 margins, 2 groups and 2 references"):
        compute(["f1a"], [0, 1], [0, 1], Questions(np.array([0, 0]), margins=np.array([0.0])))
    with pytest.raises(NotFinite, match=r"margins\[1\]"):
        score(["f1a"], [0.0, float("nan")], [0, 1], [0, 0])
