"""Rows from the hub, or from a local folder of parquet files that is laid out like it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetBuilder, load_dataset_builder

from propulsion.harness import hub
from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, TaskSpec
from propulsion.harness.sources.base import Source, features


class HubSource(Source):
    """A dataset of the hub; the local cache answers when there is no network."""

    def __init__(self, task: TaskSpec, data: DataSpec) -> None:
        super().__init__(task, data)
        if not task.hub.path:
            raise UserError(f"task {task.name} is not on the hub: it has no hub.path; use data=local or data=generated")

    def fingerprint(self) -> str:
        """Digest of the dataset's revision on the hub; of the files' bytes where `hub.path` is a folder."""
        digest = hashlib.sha256()
        for split in dict.fromkeys(("train", *self.task.parts.values())):
            name, part = self._place(split)
            builder = self._builder(name)
            digest.update(f"{name}/{part}:{_revision(builder, part)};".encode())
        return f"hub:{digest.hexdigest()[:16]}"

    def load_split(self, split: str) -> Dataset:
        name, part = self._place(split)
        try:
            builder = self._builder(name)
            builder.download_and_prepare()
            rows: Dataset = builder.as_dataset(split=part)
        except Exception as error:  # the library has another type for each thing that can go wrong
            raise self._failure(f"{name}/{part}", error) from error
        return self._conform(rows, f"{self.task.hub.path} {name}/{part}")

    def _place(self, split: str) -> tuple[str, str]:
        """The hub's configuration and split for our split."""
        spec = self.task.hub
        if split not in spec.splits:
            raise UserError(
                f"task {self.task.name} has no split '{split}' on the hub: see hub.splits in its YAML"
            )
        name, _, part = spec.splits[split].rpartition("/")
        return name or spec.name, part

    def _builder(self, name: str) -> DatasetBuilder:
        path = self.task.hub.path
        try:
            return _open_builder(path, name)
        except Exception as error:
            raise self._failure(name, error) from error

    def _failure(self, what: str, error: Exception) -> UserError:
        if isinstance(error, UserError):
            return error
        path = self.task.hub.path
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not Path(path).is_dir() and not hub.reachable():
            reason = "the hub cannot be reached and the local cache does not have it"
        return UserError(
            f"cannot load {path} {what}: {reason}; "
            "use files with data=local data.dir=<folder> (make: DATA_DIR=<folder>), or data=generated"
        )

    def _conform(self, rows: Dataset, where: str) -> Dataset:
        """The rows with our column names, order and types."""
        wanted = features(self.task)
        theirs = {column: self.task.hub.columns.get(column, column) for column in wanted}
        for column, name in theirs.items():
            if name not in rows.column_names:
                raise UserError(
                    f"{where}: no column '{name}' for '{column}' in {', '.join(rows.column_names)}"
                )
        names = getattr(rows.features[theirs["label"]], "names", self.task.labels)
        if names != self.task.labels:
            raise UserError(f"{where}: the classes are {names}, but those of the task are {self.task.labels}")
        rows = rows.select_columns(list(theirs.values()))
        rows = rows.rename_columns({name: column for column, name in theirs.items() if name != column})
        rows = rows.select_columns(list(wanted))
        if rows.features == wanted:
            return rows
        try:
            return rows.cast(wanted)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{where}: the columns do not fit task {self.task.name}: {reason}") from error


@functools.lru_cache(maxsize=32)
def _open_builder(path: str, name: str) -> DatasetBuilder:
    if not Path(path).is_dir():
        hub.reachable()  # sets the libraries to their caches when the hub does not answer
    return load_dataset_builder(path, name)


def _revision(builder: DatasetBuilder, part: str) -> str:
    files: dict[str, Any] = builder.config.data_files or {}
    paths = [Path(file) for file in files.get(part, [])]
    if not paths or not all(path.is_file() for path in paths):
        return str(builder.hash)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
