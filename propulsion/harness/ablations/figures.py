"""Ablations as pictures: a panel for each task, the levels along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from propulsion.harness.ablations.tables import Scores
from propulsion.harness.tables.model import TASK_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def degrees(both: Sequence[Scores]) -> Figure:
    """Score against degree, a line for each way of setting the learning rate."""
    from propulsion.harness.figures import style

    first = both[0]
    figure, panels = style.grid(len(first.tasks), 4, 2.0, 1.8)
    figure.set_figheight(figure.get_figheight() + 0.3)
    height = figure.get_figheight()
    figure.subplots_adjust(top=1 - style.ABOVE / height, bottom=(style.BELOW + 0.3) / height)
    names = {"degree": "one learning rate", "degree-rate": "one degree x learning rate"}
    for (task, _), axes in zip(first.tasks, panels, strict=True):
        for i, found in enumerate(both):
            points = [
                (float(level[0]), found.cells[level, task])
                for level, _ in found.ablation.levels
                if (level, task) in found.cells and found.cells[level, task].mean is not None
            ]
            look = style.look(i)
            axes.plot(
                [x for x, _ in points],
                [100 * (cell.mean or 0) for _, cell in points],
                **look,
                markersize=4,
                label=names[found.ablation.axis.name],
            )
            for x, cell in points:
                axes.plot([x] * len(cell.scores), [100 * s for s in cell.scores.values()], linestyle="",
                          marker=look["marker"], color=look["color"], markersize=2, alpha=0.6)  # fmt: skip
        axes.set_title(style.name(TASK_NAMES.get(task, task)), loc="left")
        axes.set_xlabel("degree k")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=2, fontsize=8)
    style.heading(figure, f"Degree, {_place(first)}", "score × 100, final weights; small marks: seeds")
    return figure


def levels(found: Scores) -> Figure:
    """Every level's mean and seeds, level under level."""
    from propulsion.harness.figures import style

    names = [style.name(found.ablation.axis.label(level), 30) for level, _ in found.ablation.levels]
    left = 0.35 + 0.072 * max(map(len, names))
    figure, panels = style.grid(len(found.tasks), 4, 1.8, 0.21 * len(names) + 0.4, left)
    for (task, _), axes in zip(found.tasks, panels, strict=True):
        for y, (level, _) in enumerate(found.ablation.levels):
            cell = found.cells[level, task]
            if cell.mean is None:
                continue
            seeds = [100 * score for score in cell.scores.values()]
            colour = style.COLOURS[1 if level == found.ablation.base else 0]
            axes.hlines(y, min(seeds), max(seeds), color=colour, linewidth=1.6)
            axes.plot(seeds, [y] * len(seeds), linestyle="", marker="o", color=colour, markersize=2.5, alpha=0.6)
            axes.plot(100 * cell.mean, y, marker="s", color=colour, markersize=5)
        axes.set_ylim(len(names) - 0.4, -0.6)
        place: Any = axes.get_subplotspec()
        first = place.is_first_col()
        axes.set_yticks(range(len(names)) if first else [], names if first else [])
        axes.set_title(style.name(TASK_NAMES.get(task, task)), loc="left")
        axes.locator_params(axis="x", nbins=4)
    below = "score × 100, final weights; square: mean, dots and bar: seeds and their range"
    if found.ablation.base is not None:
        below += "; orange: the base cell"
    style.heading(figure, f"{found.ablation.axis.title}, {_place(found)}", below)
    return figure


def _place(found: Scores) -> str:
    record = found.ablation.levels[0][1][0]
    return f"{found.ablation.backbone}, {record['run']['data']['source']} data"
