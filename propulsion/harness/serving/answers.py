"""Answers to texts: one JSON object for each row."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from datasets import Dataset

from propulsion.harness.classifier import Classifier
from propulsion.harness.settings import TaskSpec
from propulsion.harness.token_cache import LEAST_ROWS

AT_ONCE = LEAST_ROWS - 8  # rows; so few are not cached, and answers come while a long file is read


def answer(classifier: Classifier, rows: Iterable[list[str]]) -> Iterator[dict[str, Any]]:
    """For each row, one or two texts, its label with all probabilities, or its score in a regression."""
    task, left = classifier.settings.task, iter(rows)
    while chunk := list(itertools.islice(left, AT_ONCE)):
        columns: dict[str, list[Any]] = {name: [texts[i] for texts in chunk] for i, name in enumerate(task.text)}
        encoded = classifier.encoded(Dataset.from_dict({**columns, "label": [0] * len(chunk)}))
        yield from (_entry(task, row) for row in classifier.logits(encoded))


def _entry(task: TaskSpec, logits: np.ndarray) -> dict[str, Any]:
    """Of one row's logits, (classes,) or (1,)."""
    if task.kind == "regression":
        return {"score": float(logits[0])}
    weights = np.exp(logits - logits.max())
    shares = weights / weights.sum()
    return {
        "label": task.labels[int(logits.argmax())],
        "probabilities": {label: float(share) for label, share in zip(task.labels, shares, strict=True)},
    }
