"""Metrics of rows that each stand alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from propulsion.harness.metrics.base import Metric


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


class MacroF1(Metric):
    """Mean over the classes predicted or there of each one's F1, as scikit-learn's `average="macro"`."""

    name, short = "macro_f1", "F1"

    @staticmethod
    def score(predictions: NDArray[Any], references: NDArray[Any]) -> float:
        classes = np.union1d(predictions, references)
        return float(np.mean([F1.score(predictions == one, references == one) for one in classes]))


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
