"""Rows compared over shared seeds and tasks: every method against one reference row of its backbone.

The reference is the first row of the propulsion family. A test is made only where it could reject at all, and
corrected by Holm over all tests of its kind in the table: over the suite, and cell by cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from propulsion.harness.statistics import (
    Interval,
    compare,
    holm,
    interquartile_mean,
    intervals,
    pairs_to_test,
    sign_flip_p,
    suite_intervals,
)
from propulsion.harness.tables import suites
from propulsion.harness.tables.model import Cell, Column, Overall, Row

Key = TypeVar("Key")
FAMILY = "propulsion"
MARGIN = 1.0  # points within which two methods are the same, as in the claims ledger
LEAST_SEEDS = 2  # one seed says nothing of the spread between seeds, on however many tasks
LEAST_TASKS = 2  # one task of several says nothing of a suite


def with_statistics(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Row, ...]:
    """The rows with intervals, suite statistics and the tests against the reference row filled in."""
    references = _references(rows)
    bounds = _intervals(rows)
    overall = _overall([suites.task_cells(columns, row.cells) for row in rows], rows, references)
    tested = _cell_tests(rows, columns, references)
    filled = []
    for i, row in enumerate(rows):
        cells = tuple(replace(c, interval=bounds.get((i, j)), p=tested.get((i, j))) for j, c in enumerate(row.cells))
        label = rows[references[i]].label if i in references else ""
        average = replace(row.average, p=overall[i].p)
        filled.append(replace(row, cells=cells, average=average, overall=overall[i], reference=label))
    return tuple(filled)


def _references(rows: Sequence[Row]) -> dict[int, int]:
    """Row -> the row it is compared with; a reference row, and a backbone without one, has none."""
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        if row.method.startswith(FAMILY):
            first.setdefault(row.backbone, i)
    return {i: first[row.backbone] for i, row in enumerate(rows) if first.get(row.backbone, i) != i}


def _intervals(rows: Sequence[Row]) -> dict[tuple[int, int], Interval]:
    """Of the mean of each cell; cells with the same number of seeds at once."""
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row.cells):
            groups[len(cell.scores)].append((i, j))
    found: dict[tuple[int, int], Interval] = {}
    for n, places in groups.items():
        if n:
            values = [list(rows[i].cells[j].scores.values()) for i, j in places]
            found |= {place: bound for place, bound in zip(places, intervals(values), strict=True) if bound}
    return found


def _overall(tasks: list[list[Cell]], rows: Sequence[Row], references: dict[int, int]) -> list[Overall]:
    """`tasks`: for each row a cell for each task of the average."""
    pairs = {i: _over_the_suite(tasks[reference], tasks[i]) for i, reference in references.items()}
    shared = {i: pair for i, pair in pairs.items() if pair is not None}
    bounds = dict(zip(shared, suite_intervals([list(x - y) for x, y in shared.values()]), strict=True))
    compared = {i: compare(*pair, margin=MARGIN, tests=len(shared), interval=bounds[i]) for i, pair in shared.items()}
    adjusted = _holm({i: found.p for i, found in compared.items() if found.p is not None})
    found = _suites(tasks, rows)
    return [replace(found.get(i, Overall()), comparison=compared.get(i), p=adjusted.get(i)) for i in range(len(rows))]


def _suites(tasks: list[list[Cell]], rows: Sequence[Row]) -> dict[int, Overall]:
    """Only of rows that have their average: a score on every task from the same seeds."""
    scores = {
        i: [[100 * x for x in cell.scores.values()] for cell in own]
        for i, (own, row) in enumerate(zip(tasks, rows, strict=True))
        if row.average.mean is not None
    }
    means, iqms = (suite_intervals(list(scores.values()), iqm) for iqm in (False, True))
    return {
        i: Overall(
            interval=mean,
            median=float(np.median([np.mean(task) for task in own])),
            iqm=interquartile_mean(own),
            iqm_interval=iqm,
        )
        for (i, own), mean, iqm in zip(scores.items(), means, iqms, strict=True)
    }


def _cell_tests(
    rows: Sequence[Row], columns: Sequence[Column], references: dict[int, int]
) -> dict[tuple[int, int], float]:
    """Row and column -> p value over the shared seeds, by Holm over all that were made."""
    found = {}
    for i, reference in references.items():
        for j, column in enumerate(columns):
            pair = _paired([rows[reference].cells[j]], [rows[i].cells[j]]) if column.shown else None
            if pair is not None and pair[0].size >= pairs_to_test():
                found[i, j] = sign_flip_p(pair[0] - pair[1])
    return _holm(found)


def _holm(p_values: dict[Key, float]) -> dict[Key, float]:
    return dict(zip(p_values, holm(list(p_values.values())), strict=True))


def _paired(ours: list[Cell], theirs: list[Cell]) -> tuple[np.ndarray, np.ndarray] | None:
    """Both as (tasks x seeds) in points, of the tasks that both have and the seeds shared on all of them."""
    both = [(x.scores, y.scores) for x, y in zip(ours, theirs, strict=True) if x.scores and y.scores]
    if not both:
        return None
    seeds = sorted(set.intersection(*(set(scores) for pair in both for scores in pair)))
    if len(seeds) < LEAST_SEEDS:
        return None
    x, y = (np.array([[100 * pair[side][seed] for seed in seeds] for pair in both]) for side in (0, 1))
    return x, y


def _over_the_suite(ours: list[Cell], theirs: list[Cell]) -> tuple[np.ndarray, np.ndarray] | None:
    """`_paired`, unless the two have too few tasks in common of those that the suite has."""
    pair = _paired(ours, theirs)
    return None if pair is None or len(pair[0]) < min(LEAST_TASKS, len(ours)) else pair
