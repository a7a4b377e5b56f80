"""A table as data: its columns, rows and cells, and the fixed order of suites, tasks and methods."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property

from propulsion.harness.statistics import ALPHA, Comparison, Interval
from propulsion.harness.tables.reading import Record

NONE = "—"  # where there is no number
GAP = "best-last"
RULES = {
    "last": "the final weights",
    "heldout": "checkpoint chosen on one fixed half of the evaluation rows, scored on the other half",
    "best": "the paper's rule: the best evaluation on the reporting rows themselves, which flatters",
    GAP: "what choosing the checkpoint on the reporting rows adds, in points",
}
TASKS = {  # in the order of the suites' own papers
    "glue": ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"),
    "superglue": ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc", "axb", "axg"),
}
DIAGNOSTICS = ("ax", "axb", "axg")  # no part of a suite's average
TASK_NAMES = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI",
    "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI", "ax": "AX", "boolq": "BoolQ", "cb": "CB", "copa": "COPA",
    "multirc": "MultiRC", "record": "ReCoRD", "wic": "WiC", "wsc": "WSC", "axb": "AX-b", "axg": "AX-g",
}  # fmt: skip
METHODS = ("full", "head", "bitfit", "lora", "ia3", "propulsion")


@dataclass(frozen=True)
class Column:
    """One score of one task. `shown`: the primary metric; the others stand in the CSV only."""

    task: str
    score: str  # `accuracy`, `accuracy_mm`
    label: str  # `MNLI-mm Acc`
    shown: bool
    averaged: bool


@dataclass(frozen=True)
class Cell:
    """The runs behind one number: scores by seed, and how many runs gave none."""

    scores: dict[int, float]
    runs: int = 0
    failed: int = 0
    diverged: int = 0
    interval: Interval | None = None  # of the mean; None with too few seeds for one
    p: float | None = None  # of the test against the reference row, by Holm over the table; None: no test was made

    @cached_property
    def mean(self) -> float | None:
        """Over the runs that succeeded; None without one."""
        return statistics.fmean(self.scores.values()) if self.scores else None

    @cached_property
    def median(self) -> float | None:
        """Over the runs that succeeded; None without one."""
        return statistics.median(self.scores.values()) if self.scores else None

    @property
    def marked(self) -> bool:
        """A test was made, and it found a difference."""
        return self.p is not None and self.p <= ALPHA

    @cached_property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds (n - 1); None below two."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def status(self) -> str:
        """`not run`, `ok`, or as in `failed 1/3, diverged 1/3`."""
        if not self.runs:
            return "not run"
        lost = [("failed", self.failed), ("diverged", self.diverged)]
        return ", ".join(f"{word} {count}/{self.runs}" for word, count in lost if count) or "ok"


@dataclass(frozen=True)
class Overall:
    """One method over the suite, in points of 100. None: a task has no score, or scores from other seeds."""

    interval: Interval | None = None  # of the mean over tasks, which is the row's average
    median: float | None = None  # of the tasks' means
    iqm: float | None = None
    iqm_interval: Interval | None = None
    comparison: Comparison | None = None  # the reference row against this one; None: no task and seed in common
    p: float | None = None  # by Holm over the table; None: no test was made


@dataclass(frozen=True)
class Row:
    """One method on one backbone. Ranges are (lowest, highest) over the tasks."""

    backbone: str
    method: str
    variant: str  # what sets it apart from the same method's other rows
    cells: tuple[Cell, ...]
    average: Cell
    adapter: tuple[int, int] | None
    head: tuple[int, int] | None
    trainable: tuple[int, int] | None
    train_seconds: float | None  # per cell, mean over tasks
    step_ms: float | None
    peak_memory: int | None  # bytes, the highest cell
    whole: bool  # all shown tasks were run to the end
    records: tuple[Record, ...]
    measured: str = ""  # on what the time and memory shown were measured
    mixed: bool = False  # other runs of the row were measured on something else: they are not in time and memory
    overall: Overall = Overall()
    reference: str = ""  # label of the row it is compared with: of the same backbone; "" for that row itself

    @property
    def label(self) -> str:
        """`propulsion (degree=5)`."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


@dataclass(frozen=True)
class Table:
    """One suite by one checkpoint rule. Rows are in order: backbones, then methods."""

    suite: str
    rule: str
    title: str
    conditions: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    runs: int | None  # per cell, where it is the same everywhere

    @property
    def averaged(self) -> int:
        """Number of tasks in the average."""
        return len({column.task for column in self.columns if column.averaged})


@dataclass(frozen=True)
class Sheet:
    """Any other table, as texts. `words` is how many leading columns are words: left-aligned, the rest right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    legend: str = ""
