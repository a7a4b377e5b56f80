"""Files of one's own: .csv with a header, and .parquet, as records by the names of their columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.settings import LocalSpec, TaskSpec
from propulsion.harness.sources.reshape import Record

CSV, PARQUET = ".csv", ".parquet"
TABLES = (".tsv", ".txt")  # read line by line, without quoting, as GLUE's files are
SUFFIXES = (CSV, ".jsonl", PARQUET, *TABLES)


def check_suffix(path: Path) -> None:
    """Refuse a file of a type that is not read.

    Raises:
        UserError: its name ends in something else.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: '{path.suffix}' files are not read; use {', '.join(SUFFIXES[:-1])}")


def records_of(path: Path, task: TaskSpec, spec: LocalSpec, labelled: bool) -> Iterator[tuple[str, Record]]:
    """(place for messages, record) of every row of a .csv or .parquet file; empty cells are missing values.

    Raises:
        UserError: a file that cannot be read, without rows, or without a column that the task needs.
    """
    header, rows = (_csv if path.suffix == CSV else _parquet)(path)
    for column in (*task.text, "label"):
        names = spec.columns.get(column, column)
        names = [names] if isinstance(names, str) else names
        if not set(names) & set(header) and (column != "label" or labelled):
            raise UserError(
                f"{path}: no column {' or '.join(map(repr, names))} for '{column}'; it has {', '.join(header)}: "
                f"correct local.columns of task {task.name}"
            )
    empty = True
    for number, (place, row) in enumerate(rows):
        empty = False
        cells = {key: value for key, value in row.items() if value not in ("", None)}
        label = spec.columns.get("label", "label")
        if not task.labels and isinstance(label, str) and isinstance(cells.get(label), str):
            cells[label] = _number(cells[label])
        yield place, {**cells, "idx": number}
    if empty:
        raise UserError(f"{path}: the file has no rows")


Rows = Iterable[tuple[str, dict[str, Any]]]


def _csv(path: Path) -> tuple[list[str], Rows]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"byte {error.start} is not UTF-8"
        raise UserError(f"{path}: cannot be read ({reason}); save it as UTF-8 text") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            for cells in reader:
                place = f"{path}, line {reader.line_num}"
                if cells and len(cells) != len(header):
                    raise UserError(f"{place}: {len(cells)} cells where the header has {len(header)}; correct the line")
                if cells:
                    yield place, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}; correct the line") from error

    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{path}, line 1: {error}; correct the line") from error
    if not header:
        raise UserError(f"{path}: the file is empty; its first line has to name the columns")
    return header, rows()


def _parquet(path: Path) -> tuple[list[str], Rows]:
    import pyarrow as pa  # here, not above: a sweep whose cells are all done reads no rows
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: no parquet file that can be read ({reason}); write it again") from error
    numbered = enumerate(row for batch in table.to_batches() for row in batch.to_pylist())
    return table.column_names, ((f"{path}, row {number + 1}", row) for number, row in numbered)


def _number(word: str) -> Any:
    """The number that a .csv cell holds; the word itself where it holds none, for the message."""
    try:
        return float(word)
    except ValueError:
        return word
