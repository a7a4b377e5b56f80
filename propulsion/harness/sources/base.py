"""What every source gives: the rows of a task in the same columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, TaskSpec

if TYPE_CHECKING:  # to say that a cell is done takes no library of data sets
    from datasets import Dataset, Features

UNLABELLED = -1  # the label of rows whose answers are not published, as on the hub
MOST_ROWS = 100_000  # of one arrow array of texts, which holds 2 GB at most: ReCoRD repeats its passages


@dataclass(frozen=True)
class TaskData:
    """The rows of one cell.

    Attributes:
        train: labelled rows to train on.
        parts: the scored rows, by metric suffix: `{"": dev}`, for MNLI `{"": matched, "_mm": mismatched}`.
        source: `hub`, `local` or `generated`.
        official: whether every part has exactly as many rows (grouped: questions) as the published dev split.
    """

    train: Dataset
    parts: dict[str, Dataset]
    source: str
    official: bool


class Source(ABC):
    """One place where a task's rows come from. Making one reads no rows; only `load` and `load_split` do."""

    def __init__(self, task: TaskSpec, data: DataSpec) -> None:
        self.task = task
        self.data = data

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the rows that `load` gives, or of all that decides them."""

    @abstractmethod
    def load_split(self, split: str) -> Dataset:
        """The rows of one split by our name for it (train, dev, test, ...), in order.

        The columns are those of `features`; `label` is -1 in every row where the split has no labels.

        Raises:
            UserError: no such split, or rows that cannot be read.
        """

    def load(self) -> TaskData:
        """The training rows and the scored rows.

        Raises:
            UserError: rows cannot be read, or rows that must have labels have none.
        """
        parts = {suffix: self._labelled(split) for suffix, split in self.task.parts.items()}
        published = [self.task.dev_rows.get(split) for split in self.task.parts.values()]
        official = self.data.source != "generated" and [examples(rows) for rows in parts.values()] == published
        return TaskData(self._labelled("train"), parts, self.data.source, official)

    def load_tests(self) -> dict[str, Dataset]:
        """The rows to predict for the benchmark's server, by suffix as in `parts`."""
        return {suffix: self.load_split(split) for suffix, split in self.task.tests.items()}

    def _labelled(self, split: str) -> Dataset:
        rows = self.load_split(split)
        labels = rows.select_columns("label").with_format("numpy")[:]["label"]
        missing = int(np.count_nonzero(labels == UNLABELLED))
        if missing == len(rows) or (missing and self.task.labels):
            use = "trained on" if split == "train" else "scored"
            raise UserError(
                f"{self.task.name}: {missing} of {len(rows)} '{split}' rows of data={self.data.source} "
                f"have no label, so they cannot be {use}; {self._elsewhere(split)}"
            )
        return rows

    def _elsewhere(self, split: str) -> str:
        """Where else the split may have labels."""
        names = self.task.local.files.get(split)
        if not names:
            return "use data=generated"
        file = names if isinstance(names, str) else names[0]
        return f"use data=local with {self.task.local.folder}/{file}, or data=generated"


def features(task: TaskSpec) -> Features:
    """The columns of every source: the task's text columns, `label` and `idx`, typed as on the hub.

    Where the task has them: `group`, the same for rows that are scored together; `candidate` and `answers`, what
    the row proposes and the texts that are right; `spans`, each (text column, start, end) in characters.
    """
    from datasets import ClassLabel, Features, List, Value

    label = ClassLabel(names=list(task.labels)) if task.labels else Value("float32")
    columns: dict[str, Any] = {column: Value("string") for column in task.text}
    columns |= {"label": label, "idx": Value("int32")}
    if task.group:
        columns["group"] = List(Value("int32"))
    if task.answers:
        columns |= {"candidate": Value("string"), "answers": List(Value("string"))}
    if task.spans:
        columns["spans"] = List(List(Value("int32")))
    return Features(columns)


def make_rows(task: TaskSpec, columns: dict[str, list[Any]]) -> Dataset:
    """A dataset in memory from one list for each column of `features(task)`, all of one length."""
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    types = features(task).arrow_schema

    def some(start: int) -> Dataset:
        stop = start + MOST_ROWS
        arrays = {name: pa.array(columns[name][start:stop], types.field(name).type) for name in types.names}
        return Dataset.from_dict(arrays, features=features(task))

    return concatenate_datasets([some(start) for start in range(0, max(len(columns["idx"]), 1), MOST_ROWS)])


def group_numbers(rows: Dataset) -> np.ndarray:
    """The group of each row (n,), numbered from 0 in the order of their first rows; without groups, 0 to n - 1."""
    if "group" not in rows.column_names:
        return np.arange(len(rows))
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([numbers.setdefault(tuple(group), len(numbers)) for group in rows[:]["group"]], dtype=np.int64)


def examples(rows: Dataset) -> int:
    """What the benchmark counts: rows, or the questions where a question has several rows."""
    return int(group_numbers(rows).max(initial=-1)) + 1
