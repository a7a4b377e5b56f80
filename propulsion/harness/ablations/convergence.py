"""How fast and how large: steps to reach a score, time of a step and peak memory, from the records' evaluations.

Only runs with at least `EVALUATIONS` evaluations before the end say when a score was reached. A step is reached at the
first evaluation at or above the target: it is known to within one interval between evaluations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from propulsion.harness import sheets
from propulsion.harness.evidence import first_step
from propulsion.harness.metrics import short_name
from propulsion.harness.record import SUCCESS
from propulsion.harness.tables.conditions import alike
from propulsion.harness.tables.model import METHODS, NONE, TASK_NAMES
from propulsion.harness.tables.reading import Record
from propulsion.harness.tables.variants import variants

EVALUATIONS = 5
SHARES = (0.9, 0.95)  # of the best score that any method's run of the task and seed reached
PAPER = {"sst2": ("accuracy", 0.90)}  # the target of the paper's figure 3


@dataclass(frozen=True)
class Speed:
    """One method's runs of a task: the steps to each target by seed, None where it was never reached."""

    label: str
    adapter: int | None
    seeds: int
    best: float
    reached: dict[str, tuple[int | None, ...]]  # target -> by seed
    step_ms: float | None
    memory: int | None


def sheet_of(records: Sequence[Record], backbone: str, task: str) -> sheets.Sheet | None:
    """The table of one task, or None without two methods whose runs were evaluated often enough."""
    own = [
        r
        for r in records
        if (r["run"]["backbone"], r["run"]["task"]) == (backbone, task)
        and r["status"] == SUCCESS
        and len(r["eval"]["history"]) >= EVALUATIONS
    ]
    if len({r["run"]["method"] for r in own}) < 2:
        return None
    metric = own[0]["eval"]["primary"]
    speeds = _speeds(own, task, metric)
    every = sorted({_every(r) for r in own})
    header = ("method", "adapter", "seeds", f"best {short_name(metric)}", *speeds[0].reached, "ms/step", "memory GB")
    rows = tuple(
        (
            each.label,
            NONE if each.adapter is None else f"{each.adapter:,}",
            str(each.seeds),
            f"{100 * each.best:.1f}",
            *(_steps(steps) for steps in each.reached.values()),
            NONE if each.step_ms is None else f"{each.step_ms:,.1f}",
            NONE if each.memory is None else f"{each.memory / 1e9:.2f}",
        )
        for each in speeds
    )
    legend = (
        f"The first evaluation at or above the target, evaluated every {', '.join(map(str, every))} steps; mean over "
        "the seeds that reached it, and how many did. Shares are of the best score that any method reached with the "
        "same seed. Time and memory only of runs that were measured alike."
    )
    return sheets.Sheet(f"Steps to a score, {TASK_NAMES.get(task, task)}, {backbone}", header, rows, legend=legend)


def _speeds(records: list[Record], task: str, metric: str) -> list[Speed]:
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    by_method: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_method[record["run"]["method"]].append(record)
    for method, own in by_method.items():
        for record, variant in zip(own, variants(own), strict=True):
            groups[method, variant].append(record)
    best: dict[int, float] = defaultdict(float)
    for record in records:
        best[record["run"]["seed"]] = max(best[record["run"]["seed"]], _best(record, metric))
    found = []
    for (method, variant), own in sorted(groups.items(), key=lambda item: (_order(item[0][0]), item[0])):
        targets: dict[str, tuple[int | None, ...]] = {}
        if task in PAPER and PAPER[task][0] == metric:
            targets[f"steps to {PAPER[task][1]:.2f}"] = tuple(first_step(r, metric, PAPER[task][1]) for r in own)
        for share in SHARES:
            targets[f"to {share:.0%} of best"] = tuple(
                first_step(r, metric, share * best[r["run"]["seed"]]) for r in own
            )
        timed = [r for r in alike(own) if r["cost"].get("train_seconds") is not None]
        steps = sum(r["cost"].get("steps") or 0 for r in timed)
        memory = [r["cost"]["peak_memory_bytes"] for r in timed if r["cost"].get("peak_memory_bytes")]
        found.append(
            Speed(
                label=f"{method} ({variant})" if variant else method,
                adapter=own[0]["params"].get("adapter"),
                seeds=len(own),
                best=fmean(_best(r, metric) for r in own),
                reached=targets,
                step_ms=1000 * sum(r["cost"]["train_seconds"] for r in timed) / steps if steps else None,
                memory=max(memory, default=None),
            )
        )
    return found


def _best(record: Record, metric: str) -> float:
    return max(float(point["scores"][metric]) for point in record["eval"]["history"])


def _every(record: Record) -> int:
    steps = [int(point["step"]) for point in record["eval"]["history"]]
    return steps[1] - steps[0] if len(steps) > 1 else steps[0]


def _order(method: str) -> int:
    family = "propulsion" if method.startswith("propulsion") else method
    return METHODS.index(family) if family in METHODS else len(METHODS)


def _steps(steps: Sequence[int | None]) -> str:
    reached = [step for step in steps if step is not None]
    if not reached:
        return "never"
    return f"{fmean(reached):.0f} ({len(reached)}/{len(steps)})"


def csv_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The learning curves behind the tables: one row for each evaluation."""
    return [
        {
            "task": r["run"]["task"], "backbone": r["run"]["backbone"], "method": r["run"]["method"],
            "seed": r["run"]["seed"], "key": r["key"], "step": point["step"], "seconds": point["seconds"],
            "metric": r["eval"]["primary"], "score": point["scores"][r["eval"]["primary"]],
        }
        for r in records
        if r["status"] == SUCCESS and len(r["eval"]["history"]) >= EVALUATIONS
        for point in r["eval"]["history"]
    ]  # fmt: skip
