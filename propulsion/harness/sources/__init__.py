"""Step 2, task: rows from the hub, from local files or from the generators, in the same columns each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.settings import DataSpec, TaskSpec
from propulsion.harness.sources.base import UNLABELLED, Source, TaskData, features, group_numbers
from propulsion.harness.sources.generated import GeneratedSource
from propulsion.harness.sources.hub import HubSource
from propulsion.harness.sources.local import LocalSource

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["UNLABELLED", "Source", "TaskData", "features", "group_numbers", "hold_out", "open_source", "subset"]

SOURCES: dict[str, type[Source]] = {"hub": HubSource, "local": LocalSource, "generated": GeneratedSource}


def open_source(task: TaskSpec, data: DataSpec) -> Source:
    """The task's rows at `data.source`: checked to be there, not read.

    Raises:
        UserError: an unknown source, missing files, or a generator that does not fit the task.
    """
    if data.source not in SOURCES:
        raise unknown("data source", data.source, SOURCES)
    return SOURCES[data.source](task, data)


def subset(dataset: Dataset, rows: int, seed: int, whole_groups: bool = False) -> Dataset:
    """`rows` random rows in their old order, or all when there are no more.

    The choice depends on the seed and the size of the dataset alone, so that every method and every run
    seed gets the same rows; a smaller subset is part of a larger one.

    Args:
        whole_groups: take groups of rows until the next one would be too many, and one at least.
    """
    if rows >= len(dataset):
        return dataset
    return dataset.select(_chosen(dataset, rows, seed, whole_groups))


def hold_out(train: Dataset, rows: int, seed: int, whole_groups: bool = False) -> tuple[Dataset, Dataset]:
    """Divide training rows at random into (the rest, `rows` rows to score), both in their old order.

    Raises:
        UserError: no row would be left to train on.
    """
    if not 0 < rows < len(train):
        raise UserError(f"data.holdout_rows={rows}: the train split has {len(train)} rows; hold out fewer")
    held = _chosen(train, rows, seed, whole_groups)
    rest = np.setdiff1d(np.arange(len(train)), held)
    if not len(rest):
        raise UserError(f"data.holdout_rows={rows}: all train rows belong to one group; use another split")
    return train.select(rest), train.select(held)


def _chosen(dataset: Dataset, rows: int, seed: int, whole_groups: bool) -> np.ndarray:
    """The places of `rows` random rows, in order."""
    if not whole_groups:
        return np.sort(_shuffled(len(dataset), seed)[:rows])
    numbers = group_numbers(dataset)
    sizes = np.bincount(numbers)
    order = _shuffled(len(sizes), seed)
    count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), rows, side="right")))
    return np.flatnonzero(np.isin(numbers, order[:count]))


def _shuffled(n: int, seed: int) -> np.ndarray:
    # RandomState, because numpy promises that its stream never changes; that of Generator may.
    return np.random.RandomState(seed).permutation(n)
