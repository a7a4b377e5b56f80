"""What a suite is: which runs count for it, and its score as the benchmark defines it.

GLUE (Wang et al. 2019, section 3 and the leaderboard): the mean over nine tasks, WNLI among them, of a task's own
metrics averaged first. SuperGLUE (Wang et al. 2019, section 4): the same over eight tasks. Diagnostics are apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from propulsion.harness.tables.model import TASKS, Cell, Column
from propulsion.harness.tables.reading import Record

NAMES = {"glue": "GLUE score", "superglue": "SuperGLUE score"}
SCORES: dict[str, dict[str, tuple[str, ...]]] = {  # the metrics of each task that its part of the score averages
    "glue": {
        "cola": ("matthews_correlation",),
        "sst2": ("accuracy",),
        "mrpc": ("f1", "accuracy"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("f1", "accuracy"),
        "mnli": ("accuracy", "accuracy_mm"),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    },
    "superglue": {
        "boolq": ("accuracy",),
        "cb": ("macro_f1", "accuracy"),
        "copa": ("choice_accuracy",),
        "multirc": ("f1a", "exact_questions"),
        "record": ("token_f1", "exact_match"),
        "rte": ("accuracy",),
        "wic": ("accuracy",),
        "wsc": ("accuracy",),
    },
}


def present(records: Sequence[Record]) -> list[str]:
    """The suites that have a table, by name: those of the records, each with a task that no other table holds.

    RTE is a task of two suites and its records are GLUE's: beside tasks of SuperGLUE alone it makes no table of GLUE.
    """
    kept = sorted({record["run"]["suite"] for record in records})
    for suite in list(kept):
        tasks = {record["run"]["task"] for record in records if record["run"]["suite"] == suite}
        if any(tasks <= set(TASKS.get(other, ())) for other in kept if other != suite):
            kept.remove(suite)
    return kept


def records_of(suite: str, records: Sequence[Record]) -> list[Record]:
    """The records of a suite's own tasks, and of those that it shares with another, as SuperGLUE does RTE."""
    own = [r for r in records if r["run"]["suite"] == suite]
    return own and [r for r in records if r["run"]["suite"] == suite or r["run"]["task"] in TASKS.get(suite, ())]


def mark(suite: str, columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns, with `averaged` set on what the suite's score is made of, where every task of it has been run."""
    wanted, found = _wanted(suite), {(column.task, column.score) for column in columns}
    if not wanted or not wanted <= found:
        return tuple(columns)
    return tuple(replace(column, averaged=column.score in SCORES[suite].get(column.task, ())) for column in columns)


def whole(suite: str, columns: Sequence[Column]) -> bool:
    """Whether the average is the suite's own score: `mark` has been there."""
    wanted = _wanted(suite)
    return bool(wanted) and wanted <= {(column.task, column.score) for column in columns if column.averaged}


def _wanted(suite: str) -> set[tuple[str, str]]:
    """Task and metric of all that the suite's own score is made of."""
    return {(task, score) for task, scores in SCORES.get(suite, {}).items() for score in scores}


def average_name(suite: str, columns: Sequence[Column]) -> str:
    """`GLUE score`, or `average of 3` where not every task of the suite has been run."""
    tasks = {column.task for column in columns if column.averaged}
    return NAMES[suite] if whole(suite, columns) else f"average of {len(tasks)}"


def average(columns: Sequence[Column], cells: Sequence[Cell]) -> Cell:
    """Mean over tasks of the mean of each one's averaged scores, seed by seed.

    None without a score on every task from the same seeds.
    """
    tasks = _by_task(columns, cells)
    averaged = [cell for own in tasks for cell in own]
    if not averaged or any(not cell.scores or cell.status != "ok" for cell in averaged):
        return Cell({})
    seeds = set(averaged[0].scores)
    if any(set(cell.scores) != seeds for cell in averaged):
        return Cell({})
    scores = {
        seed: statistics.fmean(statistics.fmean(cell.scores[seed] for cell in own) for own in tasks)
        for seed in sorted(seeds)
    }
    return Cell(scores, len(scores))


def task_cells(columns: Sequence[Column], cells: Sequence[Cell]) -> list[Cell]:
    """What the average is the mean of: for each task the mean of its averaged scores, by seed."""
    found = []
    for own in _by_task(columns, cells):
        seeds = set.intersection(*(set(cell.scores) for cell in own))
        found.append(Cell({seed: statistics.fmean(cell.scores[seed] for cell in own) for seed in sorted(seeds)}))
    return found


def _by_task(columns: Sequence[Column], cells: Sequence[Cell]) -> list[list[Cell]]:
    tasks: dict[str, list[Cell]] = {}
    for column, cell in zip(columns, cells, strict=True):
        if column.averaged:
            tasks.setdefault(column.task, []).append(cell)
    return list(tasks.values())


def note(suite: str) -> str:
    """What the suite's score is, in words."""
    tasks = {"glue": "nine", "superglue": "eight"}[suite]
    pairs = {
        "glue": "MRPC and QQP F1 and accuracy, STS-B Pearson and Spearman, MNLI matched and mismatched",
        "superglue": "CB macro-F1 and accuracy, MultiRC F1a and exact match, ReCoRD F1 and exact match",
    }[suite]
    return (
        f"{NAMES[suite]}: by the benchmark's own formula on the evaluation rows named above (its leaderboard has "
        f"others), the mean over its {tasks} tasks, a task's two metrics averaged first: {pairs}. Diagnostics are "
        "apart. Only for a method with every score from the same seeds."
    )
