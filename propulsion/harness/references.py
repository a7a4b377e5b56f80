"""What the paper and its public code say, as data: `results/reference/claims.csv` and `glue.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.tables.model import TASK_NAMES

STANDINGS = ("first-hand", "second-hand", "code", "user-supplied")
KINDS = ("count", "score", "memory", "speed", "kernel")
RULES = ("best row", "last row")  # which validation row of a run a reference score is of
MISSING_SOURCE = "not available"

CLAIM_COLUMNS = (
    *("id", "kind", "statement", "place", "source", "standing", "number", "reference", "relation"),
    *("subject", "against", "backbone", "against_backbone", "task", "target", "how"),
)
SCORE_COLUMNS = (
    *("method", "backbone", "task", "metric", "value", "rule"),
    *("paper_row", "source", "standing", "note"),
)


def read_claims(path: Path) -> list[dict[str, str]]:
    """The claims, checked.

    Raises:
        UserError: a kind or standing that is not known, or a reference or a target that is no number.
    """
    rows = _read(path, CLAIM_COLUMNS)
    for line, row in enumerate(rows, 2):
        _known(path, line, "kind", row["kind"], KINDS)
        _known(path, line, "standing", row["standing"], STANDINGS)
        if row["reference"]:
            _number(path, line, "reference", row["reference"])
        if row["kind"] == "speed" and not 0 < _number(path, line, "target", row["target"]) <= 1:
            raise UserError(f"{path}, line {line}, target {row['target']}: type the accuracy to reach, as in 0.9")
    return rows


def read_scores(path: Path) -> list[dict[str, str]]:
    """The reference scores in points of 100, checked; a value filled in by the reader is `user-supplied`.

    Raises:
        UserError: a value that is no number or not in points, an unknown standing, rule or task.
    """
    rows = _read(path, SCORE_COLUMNS)
    for line, row in enumerate(rows, 2):
        _known(path, line, "rule", row["rule"], RULES)
        _known(path, line, "task", row["task"], TASK_NAMES)
        row["value"] = row["value"].strip()
        if not row["value"]:
            continue
        value = _number(path, line, "value", row["value"])
        if not (1 < abs(value) <= 100 or value == 0):
            raise UserError(f"{path}, line {line}, value {row['value']}: type points of 100, as in 94.9")
        if row["source"] == MISSING_SOURCE:
            row |= {"source": "the paper, as filled in here", "standing": "user-supplied"}
        _known(path, line, "standing", row["standing"], STANDINGS)
    return rows


def _read(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [dict(row) for row in reader]
            header = reader.fieldnames or []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"{path} cannot be read ({reason}); restore it from the repository") from error
    for column in columns:
        if column not in header:
            raise UserError(f"{path}: no column '{column}'; it has {', '.join(header) or 'none'}")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {line}: {len(header)} cells are needed; quote a text with a comma")
    return rows


def _known(path: Path, line: int, column: str, value: str, known: Iterable[str]) -> None:
    if value not in (known := list(known)):
        raise UserError(f"{path}, line {line}: {unknown(column, value, known)}")


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        hint = "type a number with a point, or nothing"
        raise UserError(f"{path}, line {line}, {column} '{text}': {hint}") from None
