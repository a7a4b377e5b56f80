"""Records to a table: which rows and columns there are, and what stands in every cell."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.metrics import base_name, short_name
from propulsion.harness.record import DIVERGED, FAILED, SUCCESS
from propulsion.harness.tables import suites
from propulsion.harness.tables.comparison import with_statistics
from propulsion.harness.tables.conditions import alike, conditions, measurement, title
from propulsion.harness.tables.model import (
    DIAGNOSTICS,
    GAP,
    METHODS,
    RULES,
    TASK_NAMES,
    TASKS,
    Cell,
    Column,
    Row,
    Table,
)
from propulsion.harness.tables.reading import Record, check_comparable, record_name
from propulsion.harness.tables.variants import variants


@dataclass(frozen=True)
class _Frame:
    """What all rules of a suite share: worked out once."""

    suite: str
    records: list[Record]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]  # in order, without scores
    title: str
    conditions: tuple[tuple[str, str], ...]


def build(records: list[Record], suite: str, rule: str = "last", left_out: Iterable[str] = ()) -> Table:
    """The table of one suite.

    Args:
        records: of one results folder; those of other suites are passed over.
        suite: as in the records.
        rule: a key of `RULES`.
        left_out: lines on files that could not be read, to be named under the table.

    Raises:
        UserError: no record of that suite, an unknown rule, or records that cannot share a table.
    """
    if rule not in RULES:
        raise unknown("checkpoint rule", rule, RULES)
    return _table(_frame(records, suite), rule, list(left_out))


def build_all(records: list[Record], suite: str, left_out: Iterable[str] = ()) -> list[Table]:
    """The tables of one suite, one for each rule, in their order.

    Raises:
        UserError: as `build`.
    """
    frame, lines = _frame(records, suite), list(left_out)
    return [_table(frame, rule, lines) for rule in RULES]


def _frame(records: list[Record], suite: str) -> _Frame:
    chosen = suites.records_of(suite, records)
    if not chosen:
        raise (unknown("suite", suite, {r["run"]["suite"] for r in records}) if records else UserError("no records"))
    check_comparable(chosen)
    chosen.sort(key=lambda r: (*_order(suite, r), r["key"]))
    return _Frame(
        suite=suite,
        records=chosen,
        columns=_columns(suite, chosen),
        rows=tuple(_bare_row(key, own) for key, own in _groups(chosen)),
        title=title(suite, chosen),
        conditions=tuple(conditions(chosen)),
    )


def _table(frame: _Frame, rule: str, left_out: list[str]) -> Table:
    rows = tuple(_scored(row, frame.columns, rule) for row in frame.rows)
    rows = rows if rule == GAP else with_statistics(rows, frame.columns)
    runs = {cell.runs for row in rows for cell in row.cells if cell.runs}
    return Table(
        suite=frame.suite,
        rule=rule,
        title=frame.title,
        conditions=frame.conditions,
        notes=tuple(_notes(frame.suite, frame.columns, rows, frame.records, left_out)),
        columns=frame.columns,
        rows=rows,
        runs=runs.pop() if len(runs) == 1 else None,
    )


def _order(suite: str, record: Record) -> tuple[Any, ...]:
    """Suite order of the task, then backbone, then the methods' order, then the seed."""
    run = record["run"]
    family = "propulsion" if run["method"].startswith("propulsion") else run["method"]
    task, method = _place(run["task"], TASKS.get(suite, ())), _place(family, METHODS)
    return task, run["task"], run["backbone"], method, run["method"], run["seed"]


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _columns(suite: str, records: list[Record]) -> tuple[Column, ...]:
    """Every score the records hold, task by task: the primary metric of each part first, then the rest."""
    columns = []
    for task in dict.fromkeys(r["run"]["task"] for r in records):
        own = [r for r in records if r["run"]["task"] == task]
        spec = own[0]["run"]["config"].get("task") or {}
        primary = next((r["eval"]["primary"] for r in own if r["eval"].get("primary")), spec.get("primary"))
        primary = primary or "score"
        suffixes = list(spec.get("parts") or {"": ""})
        first = [f"{primary}{suffix}" for suffix in suffixes]
        found = {name for r in own for rule in ("last", "heldout", "best") for name in r["eval"].get(rule) or {}}
        for score in dict.fromkeys([*first, *sorted(found)]):
            shown = score in first
            averaged = score == first[0] and task not in DIAGNOSTICS
            columns.append(Column(task, score, _label(task, score, primary), shown, averaged))
    if any(record["run"]["data"].get("source") == "generated" for record in records):
        return tuple(columns)  # whatever its formula, a number on generated rows is no score of the suite
    return suites.mark(suite, columns)


def _label(task: str, score: str, primary: str) -> str:
    metric = base_name(score, [primary, base_name(score)])
    part = score[len(metric) :].replace("_", "-")
    return f"{TASK_NAMES.get(task, task)}{part} {short_name(metric)}"


def _groups(records: list[Record]) -> list[tuple[tuple[str, str, str], list[Record]]]:
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    by_method: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_method[record["run"]["backbone"], record["run"]["method"]].append(record)
    for (backbone, method), own in by_method.items():
        for record, variant in zip(own, variants(own), strict=True):
            groups[backbone, method, variant].append(record)
    return sorted(groups.items(), key=lambda item: (*_order("", item[1][0])[2:5], _by_number(item[0][2])))


def _by_number(variant: str) -> list[tuple[float, str]]:
    """A key that puts `degree=5` before `degree=15`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", variant)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def _scored(row: Row, columns: tuple[Column, ...], rule: str) -> Row:
    """The row with what a rule gives it."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in row.records:
        by_task[record["run"]["task"]].append(record)
    cells = tuple(_cell(by_task[column.task], column.score, rule) for column in columns)
    whole = all(cell.status == "ok" for cell, column in zip(cells, columns, strict=True) if column.shown)
    return replace(row, cells=cells, average=suites.average(columns, cells), whole=whole)


def _bare_row(key: tuple[str, str, str], records: list[Record]) -> Row:
    """Of (backbone, method, variant): what is the same under every rule."""
    done = [r for r in records if r["status"] == SUCCESS]
    timed = alike(done)
    steps = sum(r["cost"].get("steps") or 0 for r in timed)
    seconds = [r for r in timed if r["cost"].get("train_seconds") is not None]
    memory = [r["cost"]["peak_memory_bytes"] for r in timed if r["cost"].get("peak_memory_bytes")]
    return Row(
        *key,
        cells=(),
        average=Cell({}),
        adapter=_count(records, "adapter"),
        head=_count(records, "head"),
        trainable=_count(records, "trainable"),
        train_seconds=_mean_of_tasks(seconds),
        step_ms=1000 * sum(r["cost"]["train_seconds"] for r in seconds) / steps if steps else None,
        peak_memory=max(memory, default=None),
        whole=False,
        measured=measurement(timed[0]) if timed else "",
        mixed=len(timed) < len(done),
        records=tuple(records),
    )


def _cell(records: list[Record], score: str, rule: str) -> Cell:
    scores: dict[int, float] = {}
    seen: dict[int, Record] = {}
    for record in records:
        seed = record["run"]["seed"]
        if seed in seen:
            raise UserError(
                f"{record_name(seen[seed])} and {record_name(record)} are the same cell and seed twice: "
                "move one of them out of runs/"
            )
        seen[seed] = record
        value = _score(record, score, rule) if record["status"] == SUCCESS else None
        if value is not None:
            scores[seed] = value
    count = [record["status"] for record in records].count
    return Cell(scores, len(records), count(FAILED), count(DIVERGED))


def _score(record: Record, score: str, rule: str) -> float | None:
    if rule == GAP:
        best, last = _score(record, score, "best"), _score(record, score, "last")
        return None if best is None or last is None else best - last
    value = (record["eval"].get(rule) or {}).get(score)
    return None if value is None else float(value)


def _count(records: list[Record], name: str) -> tuple[int, int] | None:
    """Of the tasks with two labels where there are any, else over all tasks."""
    known = [r for r in records if r["params"].get(name) is not None]
    two = [r for r in known if len((r["run"]["config"].get("task") or {}).get("labels") or ()) == 2]
    counts = [int(r["params"][name]) for r in two or known]
    return (min(counts), max(counts)) if counts else None


def _mean_of_tasks(records: list[Record]) -> float | None:
    by_task: dict[str, list[float]] = defaultdict(list)
    for record in records:
        by_task[record["run"]["task"]].append(record["cost"]["train_seconds"])
    return statistics.fmean(statistics.fmean(own) for own in by_task.values()) if by_task else None


def _notes(
    suite: str, columns: tuple[Column, ...], rows: tuple[Row, ...], records: list[Record], left_out: list[str]
) -> list[str]:
    averaged = [TASK_NAMES.get(column.task, column.task) for column in columns if column.averaged]
    whole = suites.whole(suite, columns)
    shown = {column.task for column in columns}
    absent = [TASK_NAMES[task] for task in TASKS.get(suite, ()) if task not in shown and task not in DIAGNOSTICS]
    labels = {len((r["run"]["config"].get("task") or {}).get("labels") or ()) for r in records}
    notes = []
    if whole:
        notes.append(suites.note(suite))
    if len(averaged) > 1 and not whole:
        notes.append(
            f"Average: the mean over {', '.join(averaged)}; only for a method with a score on each of them "
            "from the same seeds. A task with two evaluation sets enters with its first."
        )
    if absent:
        notes.append(f"Tasks of the suite not run at all: {', '.join(absent)}.")
    if len(labels) > 1:
        which = "of the tasks with two labels" if 2 in labels else "a range over the tasks"
        notes.append(f"Parameter counts: {which}; other tasks have a head of another size, see the CSV.")
    if any(not row.whole for row in rows):
        notes.append("† Time and memory over the tasks that this method ran to the end, not all of the columns.")
    if any(row.mixed for row in rows):
        notes.append(
            "‡ Time and memory of the runs that were measured alike; fewer others of this method, on another device, "
            "in another precision, with other neighbours or sped up otherwise, are left out of them."
        )
    if len({row.measured for row in rows if row.measured}) > 1:
        notes.append("Time and memory compare only between rows that were measured alike: see the conditions above.")
    if any(not column.shown for column in columns):
        others = (column.label for column in columns if not column.shown)
        notes.append(f"More metrics in the CSV: {', '.join(others)}.")
    return notes + [f"Left out: {line}." for line in left_out]
