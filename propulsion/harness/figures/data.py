"""What figures show, as numbers: no drawing here."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from propulsion.harness.record import SUCCESS
from propulsion.harness.tables.conditions import alike, measurement
from propulsion.harness.tables.model import Cell, Row, Table
from propulsion.harness.tables.reading import Record, at

MOST_ROWS = 20  # methods in one figure; the tables have all


@dataclass(frozen=True)
class Mark:
    """One mean in points, the ends of its bar, and the seeds behind it."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def rows_of(table: Table, backbone: str) -> list[Row]:
    """The first rows of a backbone, in the order of the table."""
    return [row for row in table.rows if row.backbone == backbone][:MOST_ROWS]


def mark(cell: Cell) -> Mark | None:
    """The bar is the 95 % interval where there is one, else the range of the seeds."""
    if cell.mean is None:
        return None
    seeds = tuple(100 * score for score in cell.scores.values())
    low, high = min(seeds), max(seeds)
    if cell.interval is not None:
        low, high = 100 * cell.interval.low, 100 * cell.interval.high
    return Mark(100 * cell.mean, low, high, seeds)


def front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: none has as few parameters and a higher score, by parameters."""
    best, kept = float("-inf"), []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def curves(row: Row, task: str, score: str) -> list[list[tuple[float, float]]]:
    """(step, points) at each evaluation of each seed's run that succeeded."""
    lines = []
    for record in row.records:
        if record["run"]["task"] == task and record["status"] == SUCCESS:
            line = [found for point in _history(record) if (found := _point(point, score)) is not None]
            if line:
                lines.append(line)
    return lines


def _history(record: Record) -> list[object]:
    history = record["eval"].get("history")
    return history if isinstance(history, list) else []


def _point(point: object, score: str) -> tuple[float, float] | None:
    if not isinstance(point, dict) or not isinstance(scores := point.get("scores"), dict):
        return None
    step, value = point.get("step"), scores.get(score)
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (step, value)):
        return None
    return float(step), 100 * float(value)  # type: ignore[arg-type]


def mean_curve(lines: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean over seeds at the steps that all of them have."""
    found = [dict(line) for line in lines]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    return [(step, sum(line[step] for line in found) / len(found)) for step in steps]


def costs(rows: list[Row]) -> dict[str, list[tuple[int, float, float | None]]]:
    """Measurement -> (row, milliseconds of a step, peak GB or None): cells measured alike, never others beside them."""
    found: dict[str, list[tuple[int, float, float | None]]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in row.records:
            if record["status"] == SUCCESS and record["cost"].get("train_seconds") is not None:
                groups[measurement(record)].append(record)
        for group, all_own in groups.items():
            own = alike(all_own)  # not fused and plain layers in one bar
            steps = sum(record["cost"].get("steps") or 0 for record in own)
            memory = [record["cost"]["peak_memory_bytes"] for record in own if record["cost"].get("peak_memory_bytes")]
            if steps > 0:
                milliseconds = 1000 * sum(record["cost"]["train_seconds"] for record in own) / steps
                found[group].append((i, milliseconds, max(memory) / 1e9 if memory else None))
    return dict(found)


def degrees(rows: list[Row], task: str, score: str, rule: str) -> dict[tuple[float, float], list[float]]:
    """(learning rate, degree) -> points of every seed, of the runs that have both."""
    found: dict[tuple[float, float], list[float]] = defaultdict(list)
    for row in rows:
        for record in row.records:
            rate, degree = (at(record, f"run.config.{path}") for path in ("training.learning_rate", "method.degree"))
            value = (record["eval"].get(rule) or {}).get(score)
            usable = all(isinstance(x, (int, float)) and not isinstance(x, bool) and x > 0 for x in (rate, degree))
            if record["run"]["task"] == task and record["status"] == SUCCESS and usable and value is not None:
                found[float(rate), float(degree)].append(100 * float(value))
    return dict(found)
