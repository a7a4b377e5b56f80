"""Rows from the hub, or from a local folder of parquet files that is laid out like it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from propulsion.harness import hub
from propulsion.harness.errors import UserError
from propulsion.harness.settings import DataSpec, TaskSpec
from propulsion.harness.sources.base import UNLABELLED, Source, features, make_rows
from propulsion.harness.sources.records import columns_of, reshape

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder


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
            rows = _read(self._builder(name), part)
        except Exception as error:  # the library has another type for each thing that can go wrong
            raise self._failure(f"{name}/{part}", error) from error
        where = f"{self.task.hub.path} {name}/{part}"
        if not self.task.reshape:
            return self._conform(rows, where)
        records = ((f"{where}, row {number}", record) for number, record in enumerate(_records(rows), 1))
        labelled = split not in self.task.tests.values()
        return make_rows(self.task, columns_of(self.task, records, reshape(self.task), labelled))

    def _place(self, split: str) -> tuple[str, str]:
        """The hub's configuration and split for our split."""
        spec = self.task.hub
        if split not in spec.splits:
            raise UserError(f"task {self.task.name} has no split '{split}' on the hub: see hub.splits in its YAML")
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
        cause = error.__cause__ or error  # "an error occurred" alone helps nobody
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        if not Path(path).is_dir() and not hub.reachable():
            reason = "the hub cannot be reached and the local cache does not have it"
        return UserError(
            f"cannot load {path} {what}: {reason}; "
            "use files with data=local data.dir=<folder> (make: DATA_DIR=<folder>), or data=generated"
        )

    def _conform(self, rows: Dataset, where: str) -> Dataset:
        """The rows with our column names, order and types."""
        wanted = features(self.task)
        if self.task.group == "pairs":
            rows = rows.add_column("group", [[number // 2] for number in range(len(rows))], feature=wanted["group"])
        theirs = {column: self._their_name(column, rows.column_names, where) for column in wanted}
        names = getattr(rows.features[theirs["label"]], "names", self.task.labels)
        if names != self.task.labels:
            raise UserError(f"{where}: the classes are {names}, but those of the task are {self.task.labels}")
        rows = rows.select_columns(list(theirs.values()))
        rows = rows.rename_columns({name: column for column, name in theirs.items() if name != column})
        rows = rows.select_columns(list(wanted))
        if rows.features != wanted:
            try:
                rows = rows.cast(wanted)
            except Exception as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{where}: the columns do not fit task {self.task.name}: {reason}") from error
        classes = {UNLABELLED, *range(len(self.task.labels))}
        odd = set(rows.select_columns("label")[:]["label"]) - classes if self.task.labels else set()
        if odd:
            raise UserError(f"{where}: label {min(odd, key=str)} is no class of {', '.join(self.task.labels)}")
        for column in self.task.text if self.task.cut else ():
            blank = [number for number, text in enumerate(rows[:][column], 1) if not (text or "").strip()]
            if blank:
                raise UserError(f"{where}, row {blank[0]}: '{column}' is empty; fetch it again, or use data=local")
        return rows

    def _their_name(self, column: str, there: list[str], where: str) -> str:
        """What the hub calls our column; of several names, the one that is there."""
        names = self.task.hub.columns.get(column, column)
        names = [names] if isinstance(names, str) else names
        found = [name for name in names if name in there]
        if not found:
            raise UserError(f"{where}: no column '{' or '.join(names)}' for '{column}' in {', '.join(there)}")
        return found[0]


@functools.lru_cache(maxsize=32)
def _open_builder(path: str, name: str) -> DatasetBuilder:
    from datasets import load_dataset_builder

    if not Path(path).is_dir():
        hub.reachable()  # sets the libraries to their caches when the hub does not answer
    return load_dataset_builder(path, name)


def _read(builder: DatasetBuilder, part: str) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import parquet

    files = _files(builder, part)
    if files:
        # Not through the library's cache: its key for a folder does not follow what is in the files.
        return Dataset(pa.concat_tables([parquet.read_table(file) for file in files]))
    builder.download_and_prepare()
    rows = builder.as_dataset(split=part)
    assert isinstance(rows, Dataset)
    return rows


def _records(rows: Dataset) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), 1000):
        yield from rows.select(range(start, min(start + 1000, len(rows)))).to_list()


def _revision(builder: DatasetBuilder, part: str) -> str:
    digest = hashlib.sha256()
    for file in _files(builder, part):
        digest.update(file.read_bytes())
    return digest.hexdigest() if _files(builder, part) else str(builder.hash)


def _files(builder: DatasetBuilder, part: str) -> list[Path]:
    """The split's files where the data set is a local folder, else none."""
    files: dict[str, Any] = builder.config.data_files or {}
    paths = [Path(file) for file in files.get(part, [])]
    return paths if all(path.is_file() for path in paths) else []
