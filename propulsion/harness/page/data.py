"""What the page's script shows, small: names once, conditions once, a record as a row of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from propulsion.harness.record import DIVERGED, FAILED, SUCCESS
from propulsion.harness.sheets import Sheet
from propulsion.harness.tables import cells as texts
from propulsion.harness.tables import escape, overall, suites
from propulsion.harness.tables.model import GAP, RULES, Row, Table
from propulsion.harness.tables.reading import Record, at

STATUS = (SUCCESS, FAILED, DIVERGED)
SHOWN_RULES = tuple(rule for rule in RULES if rule != GAP)
MESSAGE = 300  # characters of an error; its record has all
TRAINING = (
    *("learning_rate", "head_learning_rate", "epochs", "max_steps", "batch_size", "accumulation", "max_length"),
    *("schedule", "warmup_ratio", "warmup_steps", "weight_decay", "dropout", "max_grad_norm", "evaluations"),
    *("eval_steps", "best_by"),
)
# Group -> name and place in a record; records share a group's values far more often than all of them.
CONDITIONS: dict[str, dict[str, str]] = {
    "data": {
        "profile": "run.profile",
        "task version": "run.task_version",
        **{name.replace("_", " "): f"run.data.{name}" for name in ("source", "fingerprint", "train_rows", "eval_rows")},
        "published dev split": "run.data.official",
        "rows held out of train": "run.config.data.holdout_rows",
    },
    "weights": {
        **{f"weights {name}": f"run.weights.{name}" for name in ("id", "revision", "sha256")},
        "started from": "run.start.sha256",
    },
    "parameters": {name: f"params.{name}" for name in ("adapter", "head", "trainable", "total")},
    "training": {
        "recipe version": "run.config.recipe.version",
        "head policy": "run.config.method.head",
        "degree": "run.config.method.degree",
        **{name.replace("_", " "): f"run.config.training.{name}" for name in TRAINING},
    },
    "machine": {
        **{name.replace("_", " "): f"env.{name}" for name in ("device", "device_count", "parallel_cells", "precision")},
        **{name: f"env.{name}" for name in ("python", "torch", "transformers", "peft", "datasets", "commit")},
        "changes not committed": "env.dirty",
    },
}
COST = {"train_seconds": 2, "eval_seconds": 2, "steps": 0, "tokens_per_second": 0, "peak_memory_bytes": 0}


class Pool:
    """Values by number, each kept once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def index(self, value: Any) -> int:
        """Its number; the same value has the same one."""
        if value not in self._places:
            self._places[value] = len(self.values)
            self.values.append(value)
        return self._places[value]


class Pack:
    """The page's data, filled suite by suite."""

    def __init__(self) -> None:
        self._names = Pool()
        self._texts = Pool()
        self._groups = {group: Pool() for group in CONDITIONS}
        self._known: dict[tuple[str, ...], int] = {}
        self._records: list[list[Any]] = []
        self._suites: list[dict[str, Any]] = []

    def add(self, tables: Sequence[Table]) -> None:
        """One suite: the tables of all rules."""
        first = tables[0]
        tasks = list(dict.fromkeys(column.task for column in first.columns))
        shown = [column for column in first.columns if column.shown]
        self._suites.append(
            {
                "suite": escape.plain(first.suite),
                "title": escape.plain(first.title),
                "tasks": [self._names.index(task) for task in tasks],
                "columns": [[tasks.index(column.task), clean(column.label)] for column in shown],
                "scores": [[clean(c.score) for c in first.columns if c.task == task] for task in tasks],
                "average": suites.average_name(first.suite, first.columns) if first.averaged > 1 else "",
                "rules": {table.rule: escape.plain(legend(table)) for table in tables},
                "rows": [self._row(tables, i, tasks) for i in range(len(first.rows))],
                "sheets": {table.rule: [sheet(part) for part in overall.of_table(table)] for table in tables},
                "side": [sheet(part) for part in [overall.rules(tables)] if part],
            }
        )

    def _row(self, tables: Sequence[Table], i: int, tasks: list[str]) -> dict[str, Any]:
        row = tables[0].rows[i]
        first = len(self._records)
        for record in row.records:
            self._records.append(self._record(record, tables[0], row))
        own = [record["run"]["task"] for record in row.records]  # in the order of the tasks
        return {
            "backbone": self._names.index(row.backbone),
            "method": self._names.index(row.method),
            "label": clean(row.label),
            "counts": texts.row_names(row)[1:],
            "costs": texts.costs(row),
            "cells": {table.rule: [clean(text) for text in texts.scores(table, table.rows[i])] for table in tables},
            "first": first,
            "runs": [own.count(task) for task in tasks],
        }

    def _record(self, record: Record, table: Table, row: Row) -> list[Any]:
        run, cost, error = record["run"], record["cost"], record.get("error")
        names = [column.score for column in table.columns if column.task == run["task"]]
        scores = [[_points((record["eval"].get(rule) or {}).get(name)) for name in names] for rule in SHOWN_RULES]
        return [
            *(record["key"], run["seed"], STATUS.index(record["status"])),
            [self._group(record, group) for group in CONDITIONS],
            [_rounded(cost.get(name), digits) for name, digits in COST.items()],
            scores if record["status"] == SUCCESS else 0,
            self._texts.index(_error(error)) if isinstance(error, dict) else -1,
        ]

    def _group(self, record: Record, group: str) -> int:
        values = [at(record, path) for path in CONDITIONS[group].values()]
        known = (group, *map(repr, values))  # nearly every record has the values of another one
        if known not in self._known:
            texts = tuple(self._texts.index(_text(value)) for value in values)
            self._known[known] = self._groups[group].index(texts)
        return self._known[known]

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "names": [clean(name) for name in self._names.values],
            "paths": [quote(name, safe="") for name in self._names.values],
            "texts": self._texts.values,
            "status": STATUS,
            "rules": SHOWN_RULES,
            "cost": [name.replace("_", " ") for name in COST],
            "groups": [[group, list(names), self._groups[group].values] for group, names in CONDITIONS.items()],
            "suites": self._suites,
            "records": self._records,
        }


def legend(table: Table) -> str:
    """How to read the table, as under its title in the other formats."""
    return f"{RULES[table.rule]}. {texts.legend(table)}{overall.marks(table)}"


def sheet(part: Sheet) -> dict[str, Any]:
    """A sheet as the page's script takes it."""
    return {
        "title": escape.plain(part.title),
        "legend": escape.plain(part.legend),
        "header": [clean(cell) for cell in part.header],
        "words": part.words,
        "rows": [[clean(cell) for cell in row] for row in part.rows],
    }


def clean(text: str) -> str:
    """A short text of one line that holds nothing but what can be seen."""
    return texts.clip(escape.plain(text))


def _error(error: dict[str, Any]) -> str:
    text = escape.plain(f"{error.get('type')}: {error.get('message')}")
    where = escape.plain(str(error.get("where") or ""))
    text = text if len(text) <= MESSAGE else f"{text[:MESSAGE]}…"
    return f"{text} ({where})" if where else text


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = escape.plain(f"{value:,}" if isinstance(value, int) else str(value))
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}…"


def _points(score: Any) -> float | None:
    return None if score is None else round(100 * float(score), 2)


def _rounded(value: Any, digits: int) -> float | int | None:
    if value is None:
        return None
    return round(value, digits) if digits else round(value)
