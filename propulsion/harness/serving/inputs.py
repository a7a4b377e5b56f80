"""Texts to be answered: one typed in, or those of a file, as lists with one or two texts a row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from propulsion.harness.errors import UserError
from propulsion.harness.settings import TaskSpec

FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
PLAIN = ("text", "text2")


# What a task with marked spans reads, by its number of texts: see `sources.reshape`.
MARKED = {
    1: (r"\*\S.*?\*.*#\S.*?#|#\S.*?#.*\*\S.*?\*", "'*The queen* met the boy before #he# left.'"),
    2: (r"\*\S.*?\*", "'my mouth *water*' in both texts"),
}


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold the texts; empty: the task's own names, or `text` and `text2`."""

    first: str = ""
    second: str = ""


def typed(text: str, text2: str | None, task: TaskSpec) -> list[str]:
    """The one row of `text=` and `text2=`.

    Raises:
        UserError: one text where the task takes two, or two where it takes one.
    """
    if len(task.text) == 2 and text2 is None:
        raise UserError(f"{task.name} takes two texts ({task.text[0]} and {task.text[1]}): add text2=...")
    if len(task.text) == 1 and text2 is not None:
        raise UserError(f"{task.name} takes one text ({task.text[0]}): leave text2 out")
    texts = [text] if text2 is None else [text, text2]
    check_marks(texts, task)
    return texts


def check_marks(texts: list[str], task: TaskSpec) -> None:
    """Refuse a row whose words in question are not marked, as the task's training rows have them.

    Raises:
        UserError: marks are missing.
    """
    if task.spans:
        pattern, example = MARKED[len(texts)]
        if not all(re.search(pattern, text, re.DOTALL) for text in texts):
            raise UserError(f"{task.name} asks about marked words, as in {example}; there are none in {texts}")


def read_rows(path: Path, task: TaskSpec, columns: Columns) -> Iterator[list[str]]:
    """One or two texts of each row of a file, in order.

    Raises:
        UserError: a file that cannot be read, an unknown format or column, or a row without its texts.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"file={path}: the name must end in {', '.join(FORMATS)}")
    if not path.is_file():
        raise UserError(f"file={path}: there is no such file")
    try:
        for texts in _lines(path, task) if path.suffix == ".txt" else _table(path, task, columns):
            check_marks(texts, task)
            yield texts
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"file={path} cannot be read ({' '.join(str(error).split())})") from error


def _lines(path: Path, task: TaskSpec) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for number, line in enumerate(stream, 1):
            texts = line.rstrip("\r\n").split("\t") if len(task.text) == 2 else [line.rstrip("\r\n")]
            if len(texts) != len(task.text):
                raise UserError(f"{path} line {number}: {task.name} takes two texts, with one tab between them")
            yield texts


def _table(path: Path, task: TaskSpec, columns: Columns) -> Iterator[list[str]]:
    names: list[str] = []
    for number, row in _records(path):
        names = names or _choose(path, list(row), task, columns)
        texts = [row.get(name) for name in names]
        for name, text in zip(names, texts, strict=True):
            if not isinstance(text, str):
                raise UserError(f"{path} row {number}: {name} is {_kind(text)}, not text")
        yield [str(text) for text in texts]


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _choose(path: Path, known: list[str], task: TaskSpec, columns: Columns) -> list[str]:
    asked = [name for name in (columns.first, columns.second) if name]
    for name in asked:
        if name not in known:
            raise UserError(f"{path} has no column {name}; it has {', '.join(map(str, known))}")
    if asked:
        if len(asked) != len(task.text) or not columns.first:
            wanted = "column= and column2=" if len(task.text) == 2 else "column= alone"
            raise UserError(f"{task.name} takes {len(task.text)} text{'s'[: len(task.text) - 1]}: type {wanted}")
        return asked
    for names in (list(task.text), list(PLAIN[: len(task.text)])):
        if all(name in known for name in names):
            return names
    words = "column=" if len(task.text) == 1 else "column= and column2="
    raise UserError(f"{path} has neither {' and '.join(task.text)} nor {' and '.join(PLAIN[: len(task.text)])}: "
                    f"name its text with {words}; it has {', '.join(map(str, known))}")  # fmt: skip


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, column -> value)."""
    if path.suffix == ".parquet":
        rows = (row for batch in pq.ParquetFile(path).iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, 1)
        return
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if path.suffix == ".jsonl":
            yield from _json_rows(path, stream)
        else:
            yield from _cells(path, stream)


def _cells(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a .csv, or of a .tsv, in which a quote is a letter like any other, as in GLUE's files."""
    tabs = path.suffix == ".tsv"
    found = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(stream)
    header = next(found, [])
    for number, cells in enumerate((cells for cells in found if cells), 1):
        if len(cells) != len(header):
            raise UserError(f"{path} row {number} has {len(cells)} columns, and its header {len(header)}")
        yield number, dict(zip(header, cells, strict=True))


def _json_rows(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not JSON") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object")
        yield number, row
