"""Ablations as tables: a row for each level, a column for each task, and how much the levels differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from propulsion.harness import sheets
from propulsion.harness.ablations.axes import Ablation, Level
from propulsion.harness.metrics import short_name
from propulsion.harness.record import SUCCESS
from propulsion.harness.tables import cells
from propulsion.harness.tables.model import NONE, TASK_NAMES, Cell
from propulsion.harness.tables.reading import Record

RULE = "last"
ENOUGH = 6  # blocks (tasks x seeds) for the test's approximation


@dataclass(frozen=True)
class Scores:
    """One ablation's scores: (level, task) -> the cell of its seeds."""

    ablation: Ablation
    tasks: tuple[tuple[str, str], ...]  # task, primary metric
    cells: dict[tuple[Level, str], Cell]

    def mean(self, level: Level) -> float | None:
        """The mean over tasks of the means over seeds; None where a task has no score."""
        own = [self.cells[level, task].mean for task, _ in self.tasks]
        return None if any(value is None for value in own) else fmean(value for value in own if value is not None)


def scores(ablation: Ablation) -> Scores:
    """The last evaluations' primary scores."""
    tasks: dict[str, str] = {}
    for _, records in ablation.levels:
        for record in records:
            tasks.setdefault(record["run"]["task"], record["eval"]["primary"])
    order = [task for task in TASK_NAMES if task in tasks] + sorted(set(tasks) - set(TASK_NAMES))
    return Scores(
        ablation,
        tuple((task, tasks[task]) for task in order),
        {(level, task): _cell(own, task, tasks[task]) for level, own in ablation.levels for task in order},
    )


def _cell(records: Sequence[Record], task: str, metric: str) -> Cell:
    own = [r for r in records if r["run"]["task"] == task]
    found = {r["run"]["seed"]: float(r["eval"][RULE][metric]) for r in own if r["status"] == SUCCESS}
    count = [r["status"] for r in own].count
    return Cell(found, len(own), count("failed"), count("diverged"))


def sheet(found: Scores) -> sheets.Sheet:
    """The table of one ablation."""
    axis, base = found.ablation.axis, found.ablation.base
    names = tuple(f"{TASK_NAMES.get(task, task)} {short_name(metric)}" for task, metric in found.tasks)
    header = (axis.what, "adapter", "head", "learning rate", *names, "mean", "to base")
    of_base = None if base is None else found.mean(base)
    rows = []
    for level, records in found.ablation.levels:
        mean = found.mean(level)
        rows.append(
            (
                axis.label(level) + (" (base)" if level == base else ""),
                cells.count(_span(records, "adapter")),
                cells.count(_span(records, "head")),
                f"{records[0]['run']['config']['training']['learning_rate']:.3g}",
                *(_text(found.cells[level, task]) for task, _ in found.tasks),
                NONE if mean is None else f"{100 * mean:.1f}",
                NONE if mean is None or of_base is None else f"{100 * (mean - of_base) + 0.0:+.1f}",
            )
        )
    return sheets.Sheet(f"{axis.title}, {found.ablation.backbone}", header, tuple(rows), legend=said(found))


def _text(cell: Cell) -> str:
    if cell.mean is None:
        return cell.status if cell.status != "ok" else "no score"
    return cells.number(cell, RULE) + ("" if cell.status == "ok" else f", {cell.status}")


def _span(records: Sequence[Record], name: str) -> tuple[int, int] | None:
    counts = [int(r["params"][name]) for r in records if r["params"].get(name) is not None]
    return (min(counts), max(counts)) if counts else None


def said(found: Scores) -> str:
    """In words: the note, how far the levels lie apart, beside the spread over seeds, and a test where one can be."""
    means = {level: mean for level, _ in found.ablation.levels if (mean := found.mean(level)) is not None}
    words = [found.ablation.axis.note] if found.ablation.axis.note else []
    if len(means) > 1:
        label = found.ablation.axis.label
        best, worst = max(means, key=lambda k: means[k]), min(means, key=lambda k: means[k])
        words.append(
            f"Best {label(best)}, worst {label(worst)}: {100 * (means[best] - means[worst]):.1f} points apart in the "
            f"mean over tasks{_noise(found)}."
        )
    p = friedman(found)
    if p is not None:
        words.append(
            f"Friedman's test over tasks and seeds that all levels share: p = {p:.2g}"
            f" ({'the levels differ' if p < 0.05 else 'no difference shown'}; seeds of one task are no independent "
            "blocks, so read it as a guide)."
        )
    if found.ablation.left_out:
        words.append(f"{found.ablation.left_out} runs under other conditions are left out.")
    return " ".join(words)


def _noise(found: Scores) -> str:
    spreads = [cell.sd for cell in found.cells.values() if cell.sd is not None]
    return f"; a cell's standard deviation over seeds is {100 * fmean(spreads):.1f} on average" if spreads else ""


def friedman(found: Scores) -> float | None:
    """The p value of Friedman's test, blocks being (task, seed); None with fewer than three levels or six blocks."""
    levels = [level for level, _ in found.ablation.levels]
    blocks = []
    for task, _ in found.tasks:
        shared = set.intersection(*(set(found.cells[level, task].scores) for level in levels))
        blocks += [[found.cells[level, task].scores[seed] for level in levels] for seed in sorted(shared)]
    if len(levels) < 3 or len(blocks) < ENOUGH or all(len(set(block)) == 1 for block in blocks):
        return None
    return float(stats.friedmanchisquare(*zip(*blocks, strict=True)).pvalue)


def csv_rows(found: Scores) -> list[dict[str, object]]:
    """One row for each level and task, numbers unrounded."""
    rows: list[dict[str, object]] = []
    for level, records in found.ablation.levels:
        for task, metric in found.tasks:
            cell = found.cells[level, task]
            values = list(cell.scores.values())
            own = [r for r in records if r["run"]["task"] == task]
            rows.append(
                {
                    "ablation": found.ablation.axis.name,
                    "backbone": found.ablation.backbone,
                    "level": found.ablation.axis.label(level),
                    "base": level == found.ablation.base,
                    "task": task,
                    "metric": metric,
                    "rule": RULE,
                    "n": len(values),
                    "status": cell.status,
                    "mean": cell.mean,
                    "sd": stdev(values) if len(values) > 1 else None,
                    "seeds": " ".join(f"{seed}:{score:.6g}" for seed, score in sorted(cell.scores.items())),
                    "keys": " ".join(record["key"] for record in own),
                }
            )
    return rows
