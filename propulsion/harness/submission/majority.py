"""The answer of who has seen nothing but the training labels, for tasks that were not run.

As in the SuperGLUE paper's most-frequent-class baseline: the most frequent class, for COPA the choice that is most
often right, for ReCoRD the candidate that the passage names most often, for STS-B the mean score.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from datasets import Dataset

from propulsion.harness.settings import TaskSpec
from propulsion.harness.submission.formats import CHOICE, ENTITY, NUMBER, Target


def majority_logits(target: Target, task: TaskSpec, train: Dataset, rows: Dataset) -> np.ndarray:
    """Scores that make every answer the majority's, as a model's logits: (n, classes), or (n, 1).

    Args:
        task: whose training rows they are.
        train: labelled rows; those of ReCoRD are not needed, since a passage answers for itself.
        rows: the test rows.
    """
    if target.form == ENTITY:
        passages = rows.select_columns([task.text[0], "candidate"])[:]
        pairs = zip(passages[task.text[0]], passages["candidate"], strict=True)
        return _right(np.array([text.count(name) for text, name in pairs], dtype=np.float64))
    labels = train.select_columns(["label"])[:]["label"]
    if target.form == NUMBER:
        return np.full((len(rows), 1), float(np.mean(np.asarray(labels, dtype=np.float64))))
    if target.form == CHOICE:
        right = [i for i, label in zip(train.select_columns(["idx"])[:]["idx"], labels, strict=True) if label == 1]
        most = _most(right)
        return _right(np.array([i == most for i in rows.select_columns(["idx"])[:]["idx"]], dtype=np.float64))
    logits = np.zeros((len(rows), len(task.labels)))
    logits[:, _most(labels)] = 1.0
    return logits


def _right(scores: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(scores), scores], axis=1)


def _most(values: list[int]) -> int:
    """The most frequent value, the smallest of equally frequent ones."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
