"""Rows that the project writes itself from a seed: no download, no licence, any size."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.settings import DataSpec, LocalSpec, TaskSpec
from propulsion.harness.sources.base import UNLABELLED, Source, make_rows
from propulsion.harness.sources.generators import (
    EVALUATION_SHARES,
    FAMILIES,
    RECORD_FAMILIES,
    Family,
    RecordFamily,
    write_records,
    write_rows,
)
from propulsion.harness.sources.records import columns_of, flat, reshape

if TYPE_CHECKING:
    from datasets import Dataset


class GeneratedSource(Source):
    """`data.train_rows` rows to train on and `data.eval_rows` in every other split, and the rest of the last group.

    Raises:
        UserError: no such generator, or one that does not fit the task's labels and columns.
    """

    def __init__(self, task: TaskSpec, data: DataSpec) -> None:
        super().__init__(task, data)
        if not task.generator:
            raise UserError(f"task {task.name} has no generator; use data=local or data=hub")
        families: dict[str, Family | RecordFamily] = {**FAMILIES, **RECORD_FAMILIES}
        if task.generator not in families:
            raise unknown("generator", task.generator, families)
        self._family = families[task.generator]
        self._family.check(task)
        for key in ("train_rows", "eval_rows"):
            if getattr(data, key) < 1:
                raise UserError(f"data.{key}={getattr(data, key)}: must be 1 or more")
        # Each split has its own share of all possible rows, so that no row is in two of them.
        self._splits = list(dict.fromkeys(("train", *task.parts.values(), *task.tests.values())))
        if len(self._splits) > 1 + EVALUATION_SHARES:
            raise UserError(f"task {task.name}: data=generated has at most {EVALUATION_SHARES} splits and train")

    def fingerprint(self) -> str:
        """Digest of everything that decides the rows; a new version of the generator changes it."""
        family, data = self._family, self.data
        sizes = (data.seed, data.train_rows, data.eval_rows)
        parts = (family.name, family.version, *self.task.labels, *self._splits, *sizes)
        return f"generated:{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

    def load_split(self, split: str) -> Dataset:
        if split not in self._splits:
            raise UserError(f"task {self.task.name} has no split '{split}'; it has {', '.join(self._splits)}")
        count = self.data.train_rows if split == "train" else self.data.eval_rows
        labelled = split == "train" or split in self.task.parts.values()
        share = self._splits.index(split)
        columns = self._rows(share, count) if isinstance(self._family, Family) else self._reshaped(share, count)
        if not labelled:
            columns["label"] = [UNLABELLED] * len(columns["label"])
        if not labelled and self.task.answers:
            columns["answers"] = [[] for _ in columns["answers"]]
        return make_rows(self.task, columns)

    def _rows(self, share: int, count: int) -> dict[str, list[Any]]:
        assert isinstance(self._family, Family)
        rows = write_rows(self._family, self.task.labels, share, count, self.data.seed)
        columns: dict[str, list[Any]] = {
            name: [texts[place] for texts, _ in rows] for place, name in enumerate(self.task.text)
        }
        return {**columns, "label": [label for _, label in rows], "idx": list(range(len(rows)))}

    def _reshaped(self, share: int, count: int) -> dict[str, list[Any]]:
        """The rows of as many records as make `count` rows, by the functions that read the official files."""
        assert isinstance(self._family, RecordFamily)
        rows_of = reshape(self.task) if self.task.reshape else flat(self.task, LocalSpec())
        records: list[tuple[str, dict[str, Any]]] = []
        rows = 0
        for found in write_records(self._family, share, self.data.seed):
            records += [(f"generator {self._family.name}, record {one['idx']}", one) for one in found]
            rows += sum(len(rows_of(one)) for one in found)
            if rows >= count:
                break
        return columns_of(self.task, records, rows_of, labelled=True)
