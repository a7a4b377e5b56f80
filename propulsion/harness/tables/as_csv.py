"""A table as CSV: a row for each rule, method, backbone and score, numbers unrounded, all conditions."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from propulsion.harness.record import SUCCESS
from propulsion.harness.tables import escape, overall
from propulsion.harness.tables.conditions import alike, measured
from propulsion.harness.tables.model import GAP, Cell, Row, Table
from propulsion.harness.tables.reading import Record, at

# CSV column -> where it stands in a record; several values in one cell are joined, `1 | 2`.
CONDITIONS = {
    **{name: f"params.{name}" for name in ("adapter", "head", "trainable", "total")},
    "profile": "run.profile",
    "task_version": "run.task_version",
    **{f"data_{k}": f"run.data.{k}" for k in ("source", "fingerprint", "train_rows", "eval_rows", "official")},
    **{f"weights_{name}": f"run.weights.{name}" for name in ("id", "revision", "sha256")},
    "start_sha256": "run.start.sha256",
    "recipe_version": "run.config.recipe.version",
    **{
        name: f"run.config.training.{name}"
        for name in (
            *("learning_rate", "head_learning_rate", "epochs", "max_steps", "batch_size", "accumulation"),
            *("max_length", "schedule", "warmup_ratio", "warmup_steps", "weight_decay", "evaluations"),
            *("eval_steps", "best_by"),
        )
    },
    **{name: f"env.{name}" for name in ("device", "device_count", "precision", "python", "torch")},
    **{name: f"env.{name}" for name in ("transformers", "peft", "datasets", "commit", "dirty")},
}

MEASURED = ("env.parallel_cells", "cost.packed_with", "cost.fast_path")  # of the runs behind time and memory


def to_csv(tables: Sequence[Table]) -> str:
    """One row for each rule, method, backbone and score; cells not run have a row too."""
    conditions: dict[tuple[str, ...], dict[str, object]] = {}  # the same under every rule
    rows = [
        _row(table, row, index, conditions) for table in tables for row in table.rows for index in range(len(row.cells))
    ]
    return rows_to_csv(rows)


def to_suite_csv(tables: Sequence[Table]) -> str:
    """One row for each rule, backbone and method: the suite as a whole, and the test against the reference."""
    return rows_to_csv([row for table in tables if table.rule != GAP for row in overall.csv_rows(table)])


def rows_to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV, numbers unrounded, text harmless to a spreadsheet. There must be at least one row."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: escape.csv_text(v) if isinstance(v, str) else v for key, v in row.items()})
    return out.getvalue()


def _row(table: Table, row: Row, index: int, known: dict[tuple[str, ...], dict[str, object]]) -> dict[str, object]:
    column, cell = table.columns[index], row.cells[index]
    place = (row.backbone, row.method, row.variant, column.task)
    if place not in known:
        known[place] = _conditions([record for record in row.records if record["run"]["task"] == column.task])
    return {
        "suite": table.suite,
        "backbone": row.backbone,
        "method": row.method,
        "variant": row.variant,
        "task": column.task,
        "score": column.score,
        "primary": int(column.shown),
        "rule": table.rule,
        **_numbers(cell),
        **known[place],
    }


def _conditions(own: list[Record]) -> dict[str, object]:
    return {
        "seeds": " ".join(str(record["run"]["seed"]) for record in own),
        **_cost([record for record in own if record["status"] == SUCCESS]),
        **{name: _joined(own, path) for name, path in CONDITIONS.items()},
        "keys": " ".join(record["key"] for record in own),
    }


def _numbers(cell: Cell) -> dict[str, object]:
    scores = cell.scores.values()
    return {
        "status": cell.status,
        "n": len(cell.scores),
        "runs": cell.runs,
        "failed": cell.failed,
        "diverged": cell.diverged,
        "mean": cell.mean,
        "median": cell.median,
        "sd": cell.sd,
        "low": cell.interval.low if cell.interval else None,
        "high": cell.interval.high if cell.interval else None,
        "p_holm": cell.p,
        "min": min(scores, default=None),
        "max": max(scores, default=None),
    }


def _cost(done: list[Record]) -> dict[str, object]:
    """Time and memory of the cell's runs that were measured alike, on what, and how many they are."""
    timed = alike(done)
    return {
        "train_seconds": _mean(timed, "train_seconds"),
        "steps": _joined(done, "cost.steps"),
        "samples_per_second": _mean(timed, "samples_per_second"),
        "tokens_per_second": _mean(timed, "tokens_per_second"),
        "peak_memory_bytes": max(_values(timed, "cost.peak_memory_bytes"), default=None),
        "cost_runs": len(timed),
        "cost_measured": measured(timed[0]) if timed else "",
        **{path.rpartition(".")[2]: _joined(timed, path) for path in MEASURED},
        "adapter_bytes": _joined(done, "cost.adapter_bytes"),
    }


def _values(records: list[Record], path: str) -> list[Any]:
    return [value for record in records if (value := at(record, path)) is not None]


def _joined(records: list[Record], path: str) -> object:
    """The one value of all records; several as text."""
    found = {str(value): value for value in _values(records, path)}
    return next(iter(found.values())) if len(found) == 1 else " | ".join(sorted(found))


def _mean(records: list[Record], name: str) -> float | None:
    numbers = _values(records, f"cost.{name}")
    return sum(numbers) / len(numbers) if numbers else None
