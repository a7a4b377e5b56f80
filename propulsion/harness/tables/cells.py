"""What is printed in a cell: one text per number, the same in every format."""

from __future__ import annotations

from propulsion.harness.tables import suites
from propulsion.harness.tables.model import GAP, NONE, Cell, Row, Table

LONGEST = 80  # characters of a name in a table; the CSV has all of it


def header(table: Table) -> list[str]:
    """Column names: method, three counts, the shown scores, the average, time and memory."""
    return [*names(table), *score_header(table), "train s", "ms/step", "memory GB"]


def cells(table: Table, row: Row) -> list[str]:
    """The texts of one row, in the order of `header`."""
    return [*row_names(row), *scores(table, row), *costs(row)]


def names(table: Table) -> list[str]:
    """Headers of the columns that say what a row is."""
    return ["method", "adapter", "head", "trainable"]


def row_names(row: Row) -> list[str]:
    """The method and its three parameter counts."""
    return [clip(row.label), *map(count, (row.adapter, row.head, row.trainable))]


def score_header(table: Table) -> list[str]:
    """Task and metric of each shown score; `GLUE score` or `average of 3` when there are two tasks or more."""
    average = [suites.average_name(table.suite, table.columns)] if table.averaged > 1 else []
    return [clip(column.label) for column in table.columns if column.shown] + average


def scores(table: Table, row: Row) -> list[str]:
    """The shown scores and the average."""
    shown = [cell for cell, column in zip(row.cells, table.columns, strict=True) if column.shown]
    average = [NONE if row.average.mean is None else number(row.average, table.rule)]
    return [score(cell, table) for cell in shown] + (average if table.averaged > 1 else [])


def costs(row: Row) -> list[str]:
    """Training seconds of a cell, milliseconds of a step, peak memory in GB (10^9 bytes)."""
    mark = ("" if row.whole else "†") + ("‡" if row.mixed else "")
    memory = None if row.peak_memory is None else f"{row.peak_memory / 1e9:.2f}{mark}"
    seconds = None if row.train_seconds is None else f"{row.train_seconds:,.1f}{mark}"
    step = None if row.step_ms is None else f"{row.step_ms:,.1f}{mark}"
    return [text or NONE for text in (seconds, step, memory)]


def score(cell: Cell, table: Table) -> str:
    """`82.9 ± 0.4`, with what was lost (`failed 1/3`), and n where it is not the same in every cell."""
    if cell.mean is None:
        return cell.status if cell.status != "ok" else "no score"
    text = number(cell, table.rule)
    if cell.status != "ok":
        return f"{text}, {cell.status}"
    if len(cell.scores) < cell.runs:
        return f"{text} (n={len(cell.scores)}/{cell.runs})"
    return text if table.runs else f"{text} (n={cell.runs})"


def number(cell: Cell, rule: str) -> str:
    """Mean and spread in points (x 100), one decimal; a star where a test found a difference."""
    if cell.mean is None:
        return NONE
    mean = round(100 * cell.mean, 1) + 0.0  # never "-0.0"
    text = f"{mean:+.1f}" if rule == GAP and mean else f"{mean:.1f}"
    text = text if cell.sd is None else f"{text} ± {100 * cell.sd:.1f}"
    return f"{text} *" if cell.marked else text


def count(span: tuple[int, int] | None) -> str:
    """`86,018`, or `86,018–86,787` over the tasks."""
    if span is None:
        return NONE
    low, high = span
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def legend(table: Table) -> str:
    """How to read a score cell of this table."""
    if table.runs == 1:
        return "Scores × 100; one run per cell, so no spread."
    n = f"{table.runs} runs in every cell" if table.runs else "n runs in a cell, as shown"
    return f"Scores × 100, mean ± standard deviation over seeds; {n}."


def by_backbone(table: Table) -> list[tuple[str, list[Row]]]:
    """The rows of each backbone, in order."""
    found: dict[str, list[Row]] = {}
    for row in table.rows:
        found.setdefault(row.backbone, []).append(row)
    return list(found.items())


def clip(name: str) -> str:
    """A name that leaves room for the numbers."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
