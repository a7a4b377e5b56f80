"""Records, of a .jsonl file or of the hub, as the task's columns; what is wrong with one is said with its place."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.settings import LocalSpec, TaskSpec
from propulsion.harness.sources.base import UNLABELLED, features
from propulsion.harness.sources.reshape import RESHAPES, BadRow, Record, Row, index

log = logging.getLogger(__name__)


def read_records(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, Record]]:
    """(place for messages, record) of every line of a .jsonl file; a record without `idx` gets its number.

    Raises:
        UserError: a line that is no JSON object, or a file without lines.
    """
    last, blank = -1, 0
    for last, line in enumerate(lines):
        place = f"{path}, line {last + 1}"
        if not line.strip():
            blank = blank or last + 1
            continue
        if blank:
            raise UserError(f"{path}, line {blank}: an empty line between others; take it out, or fetch the file again")
        try:
            found = json.loads(line.decode("utf-8-sig" if last == 0 else "utf-8"))
            if b"\\ud" in line.lower():  # half of a surrogate pair is no text
                json.dumps(found, ensure_ascii=False).encode()
        except (UnicodeError, json.JSONDecodeError) as error:
            raise UserError(f"{place}: no JSON ({error}); correct the line, or fetch the file again") from error
        if not isinstance(found, dict):
            raise UserError(
                f"{place}: {str(found)[:40]!r} is no JSON object; correct the line, or fetch the file again"
            )
        yield place, {"idx": last, **found}
    if last < 0 or blank == 1:
        raise UserError(f"{path}: the file has no rows; fetch it again")


def columns_of(
    task: TaskSpec, records: Iterable[tuple[str, Record]], rows_of: Callable[[Record], list[Row]], labelled: bool
) -> dict[str, list[Any]]:
    """The columns of `features(task)` from (place, record) pairs, rows in the order of the records.

    Args:
        rows_of: the rows of one record, a function of reshape.py or one that `flat` gives.
        labelled: whether every row must have a label.

    Raises:
        UserError: a record that cannot be a row, with its place and the reason.
    """
    columns: dict[str, list[Any]] = {name: [] for name in features(task)}
    odd: dict[str, list[str]] = {}
    seen: dict[tuple[int, ...], str] = {}  # where rows are scored together: the first row of each, and its place
    for place, found in records:
        try:
            rows = rows_of(found)
            if labelled and any(row["label"] == UNLABELLED for row in rows):
                raise BadRow("no label")
            if task.group == "given":
                for group, its in itertools.groupby(rows, key=lambda row: tuple(row["group"])):
                    first = seen.setdefault((*group, next(its)["idx"]), place)
                    if first != place:
                        raise BadRow(f"the idx of {first}")
        except BadRow as error:
            raise UserError(f"{place}: {error}; correct it, or fetch the file again") from error
        for row in rows:
            if "odd" in row:
                odd.setdefault(row["odd"], []).append(place)
            if task.group == "pairs":
                row["group"] = [len(columns["idx"]) // 2]
            for name, values in columns.items():
                values.append(row[name])
    for fault, places in odd.items():
        log.warning("%s: %s, in %d rows; the first is %s", task.name, fault, len(places), places[0])
    return columns


def reshape(task: TaskSpec) -> Callable[[Record], list[Row]]:
    """The task's function of reshape.py. Raises UserError when there is none of that name."""
    if task.reshape not in RESHAPES:
        raise unknown("task.reshape", task.reshape, RESHAPES)
    return RESHAPES[task.reshape]


def flat(task: TaskSpec, spec: LocalSpec) -> Callable[[Record], list[Row]]:
    """A function that makes a record of a .jsonl file the one row that it is: names and label words translated."""
    words = spec.labels or {name: name for name in task.labels}
    ids = {word: task.labels.index(name) for word, name in words.items()}

    def rows_of(found: Record) -> list[Row]:
        row = {column: _value(found, spec.columns.get(column, column)) for column in task.text}
        for column, text in row.items():
            if not isinstance(text, str) or not text.strip():
                raise BadRow(f"no '{column}'" if text is None else f"'{column}' is empty or no text: {text!r}")
        return [{**row, "label": label(_value(found, spec.columns.get("label", "label"))), "idx": index(found)}]

    def label(word: Any) -> Any:
        if word is None:
            return UNLABELLED
        if not task.labels and isinstance(word, int | float) and math.isfinite(word):
            return float(word)
        if str(word) not in ids:
            raise BadRow(f"label {str(word)!r} is none of {', '.join(ids)}" if ids else f"label {word!r} is no number")
        return ids[str(word)]

    return rows_of


def _value(found: Record, names: str | list[str]) -> Any:
    """Of the first of the names that the record has; None without one."""
    names = [names] if isinstance(names, str) else names
    return next((found[name] for name in names if found.get(name) is not None), None)
