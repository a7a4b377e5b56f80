"""The figures, one function each: a suite's tables and a backbone in, a drawing or None out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from propulsion.harness.figures import data
from propulsion.harness.tables import suites
from propulsion.harness.tables.model import GAP, Column, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RULE = "last"  # of the figures that show one
MOST_PANELS = 10
BARS = "bar: 95 % bootstrap interval of the mean with 5 seeds or more, else the range of the seeds; dots: seeds"


@dataclass(frozen=True)
class FigureFile:
    """One figure as it is written."""

    suite: str
    backbone: str
    kind: str
    title: str
    files: dict[str, bytes]  # ending -> content


def draw_all(tables: Sequence[Table]) -> list[FigureFile]:
    """Every figure that the tables of one suite give, backbone by backbone."""
    from propulsion.harness.figures import style

    found = []
    by_rule = {table.rule: table for table in tables}
    with style.drawing():
        for backbone in dict.fromkeys(row.backbone for row in tables[0].rows):
            for kind, (title, draw) in KINDS.items():
                figure = draw(by_rule, backbone)
                if figure is not None:
                    files = style.save(figure)
                    found.append(FigureFile(tables[0].suite, backbone, kind, title, files))
    return found


def pareto(tables: dict[str, Table], backbone: str) -> Figure | None:
    """Mean over the suite against trainable parameters; the line joins what nothing smaller beats."""
    from propulsion.harness.figures import style

    table = tables[RULE]
    rows = data.rows_of(table, backbone)
    points = [
        (i, float(row.trainable[1]), 100 * row.average.mean)
        for i, row in enumerate(rows)
        if row.trainable and row.trainable[1] > 0 and row.average.mean is not None
    ]
    if not points:
        return None
    figure, (axes,) = style.grid(1, 1, 4.6, 3.1)
    figure.set_figwidth(figure.get_figwidth() + 1.9)
    figure.subplots_adjust(right=0.7)
    kept = data.front([(x, y) for _, x, y in points])
    axes.plot(
        *zip(*[points[i][1:] for i in kept], strict=True),
        color=style.GREY,
        linewidth=1,
        zorder=1,
        drawstyle="steps-post",
    )
    for i, x, y in points:
        own, bounds = style.look(i), rows[i].overall.interval
        if bounds:
            axes.vlines(x, bounds.low, bounds.high, color=own["color"], linewidth=1.2)
        label = style.name(rows[i].label)
        axes.plot(x, y, color=own["color"], marker=own["marker"], linestyle="", markersize=7, label=label)
    style.log_counts(axes)
    axes.set_xlabel("trainable parameters, head included")
    axes.set_ylabel("score × 100")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="line: Pareto front", alignment="left")
    what = suites.average_name(table.suite, table.columns) if table.averaged > 1 else table.columns[0].label
    bars = "; bars: 95 % stratified bootstrap" if any(rows[i].overall.interval for i, *_ in points) else ""
    style.heading(figure, f"{_place(table, backbone)}: score against parameters", f"{what}, {_rule(RULE)}{bars}")
    return figure


def tasks(tables: dict[str, Table], backbone: str) -> Figure | None:
    """Every method's mean on every task, with its seeds."""
    return _dots(tables[RULE], backbone, "score per task, × 100", f"{_rule(RULE)}; {BARS}")


def gap(tables: dict[str, Table], backbone: str) -> Figure | None:
    """What the paper's rule adds, by task."""
    note = "points that choosing the checkpoint on the reporting rows adds; bar: range of the seeds; dots: seeds"
    return _dots(tables[GAP], backbone, "best minus last", note, zero=True)


def _dots(table: Table, backbone: str, title: str, below: str, zero: bool = False) -> Figure | None:
    from propulsion.harness.figures import style

    rows, shown = data.rows_of(table, backbone), _shown(table)
    shown = [(j, column) for j, column in shown if any(row.cells[j].mean is not None for row in rows)]
    if not shown:
        return None
    height = max(1.1, 0.21 * len(rows) + 0.3)
    names = [style.name(row.label, 24) for row in rows]
    left = 0.35 + 0.072 * max(map(len, names))
    figure, panels = style.grid(len(shown), 5, 1.75, height, left)
    looks = [style.look(i) for i in range(len(rows))]
    for n, ((j, column), axes) in enumerate(zip(shown, panels, strict=True)):
        found = [(i, mark) for i, row in enumerate(rows) if (mark := data.mark(row.cells[j])) is not None]
        places = [i for i, _ in found]
        colours = [looks[i]["color"] for i in places]
        bars = [mark.low for _, mark in found], [mark.high for _, mark in found]
        axes.hlines(places, *bars, color=colours, linewidth=1.6)
        seeds = [(x, i, looks[i]["color"]) for i, mark in found for x in mark.seeds]
        axes.scatter([x for x, *_ in seeds], [y for _, y, _ in seeds], c=[c for *_, c in seeds], s=4, alpha=0.6)
        for i, mark in found:
            axes.plot(mark.mean, i, marker=looks[i]["marker"], color=looks[i]["color"], markersize=5.5, linestyle="")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        first = n % 5 == 0  # of its line: the others share its names
        axes.set_yticks(range(len(rows)) if first else [], names if first else [])
        axes.set_title(style.name(column.label, 24), loc="left")
        if zero:
            axes.axvline(0, color=style.GREY, linewidth=0.8)
            axes.set_xlim(right=max(axes.get_xlim()[1], 0.1))
        axes.locator_params(axis="x", nbins=4)
    style.heading(figure, f"{_place(table, backbone)}: {title}", below)
    return figure


def curves(tables: dict[str, Table], backbone: str) -> Figure | None:
    """The primary score at every evaluation: a thin line for each seed, a thick one for their mean."""
    from matplotlib.collections import LineCollection

    from propulsion.harness.figures import style

    table = tables[RULE]
    rows = data.rows_of(table, backbone)
    shown = [
        (column, lines)
        for _, column in _shown(table)
        if any(lines := [data.curves(row, column.task, column.score) for row in rows])
    ]
    if not shown:
        return None
    figure, panels = style.grid(len(shown), 5, 1.9, 1.7)
    figure.set_figheight(figure.get_figheight() + 0.25 * -(-len(rows) // 6))
    height = figure.get_figheight()
    figure.subplots_adjust(top=1 - style.ABOVE / height, bottom=(0.75 + 0.2 * -(-len(rows) // 6)) / height)
    for (column, lines), axes in zip(shown, panels, strict=True):
        for i, runs in enumerate(lines):
            look = style.look(i)
            if len(runs) > 1:
                axes.add_collection(LineCollection(runs, colors=look["color"], linewidths=0.5, alpha=0.5))
            mean = data.mean_curve(runs)
            if mean:
                axes.plot(*zip(*mean, strict=True), **look, linewidth=1.4, markersize=3.5, markevery=0.15)
        axes.set_title(style.name(column.label, 24), loc="left")
        axes.locator_params(nbins=4)
        axes.set_xlabel("step")
    _legend(figure, rows)
    style.heading(
        figure, f"{_place(table, backbone)}: learning curves, score × 100", "thick: mean over seeds; thin: each seed"
    )
    return figure


def cost(tables: dict[str, Table], backbone: str) -> Figure | None:
    """Time and memory; a pair of panels for each group of runs that were measured alike."""
    from propulsion.harness.figures import style

    table = tables[RULE]
    rows = data.rows_of(table, backbone)
    groups = list(data.costs(rows).items())[: MOST_PANELS // 2]
    if not groups:
        return None
    height = max(1.1, 0.24 * max(len(found) for _, found in groups) + 0.4)
    left = 0.35 + 0.072 * max(len(style.name(row.label, 24)) for row in rows)
    figure, panels = style.grid(2 * len(groups), 2, 3.3, height, left)
    for k, (group, found) in enumerate(groups):
        for axes, column, what in ((panels[2 * k], 1, "ms / step"), (panels[2 * k + 1], 2, "peak memory, GB")):
            _bars(axes, [style.name(rows[i].label, 24) for i, *_ in found], [entry[column] for entry in found])
            axes.set_title(f"{style.name(group, 100)}\n{what}" if column == 1 else what, loc="left")
            axes.tick_params(labelleft=column == 1)
    note = "runs on other devices, precisions or with other neighbours stand in panels of their own"
    style.heading(figure, f"{_place(table, backbone)}: time and memory", note)
    return figure


def _bars(axes: Axes, names: list[str], values: Sequence[float | None]) -> None:
    from propulsion.harness.figures import style

    for y, value in enumerate(values):
        if value is not None:
            axes.barh(y, value, height=0.62, color=style.COLOURS[0])
            text = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
            axes.text(value, y, f" {text}", va="center", fontsize=7.5)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_yticks(range(len(values)), names)
    axes.set_xlim(0, 1.18 * max([value for value in values if value is not None], default=1.0) or 1.0)
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=5)


def degree(tables: dict[str, Table], backbone: str) -> Figure | None:
    """Degree against learning rate, where the records have several of both; under Adam their product counts."""
    from propulsion.harness.figures import style

    table = tables[RULE]
    rows = [row for row in table.rows if row.backbone == backbone]
    shown = []
    for _, column in _shown(table):
        found = data.degrees(rows, column.task, column.score, RULE)
        if all(len({pair[side] for pair in found}) > 1 for side in (0, 1)):
            shown.append((column, found))
    if not shown:
        return None
    figure, panels = style.grid(len(shown), 3, 2.7, 2.2)
    for (column, found), axes in zip(shown, panels, strict=True):
        pairs = sorted(found)
        means = [sum(found[pair]) / len(found[pair]) for pair in pairs]
        rates, powers = zip(*pairs, strict=True)
        spots = axes.scatter(rates, powers, c=means, cmap="viridis", s=60, edgecolors="black", linewidths=0.5)
        for (x, y), value in zip(pairs, means, strict=True):
            axes.annotate(f"{value:.1f}", (x, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.15)
        axes.set_yticks(sorted(set(powers)), [f"{y:g}" for y in sorted(set(powers))])
        axes.minorticks_off()
        axes.set_xlabel("learning rate")
        axes.set_ylabel("degree k")
        axes.set_title(style.name(column.label, 24), loc="left")
        figure.colorbar(spots, ax=axes, shrink=0.8)
    style.heading(figure, f"{_place(table, backbone)}: degree against learning rate", f"score × 100, {_rule(RULE)}")
    return figure


def _legend(figure: Figure, rows: list[Row]) -> None:
    from matplotlib.lines import Line2D

    from propulsion.harness.figures import style

    handles = [Line2D([], [], **style.look(i), markersize=4, linewidth=1.4) for i in range(len(rows))]
    names = [style.name(row.label, 24) for row in rows]
    columns = min(len(rows), max(1, int(figure.get_figwidth() / 1.5)))
    figure.legend(handles, names, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=columns, fontsize=8)


def _shown(table: Table) -> list[tuple[int, Column]]:
    return [(j, column) for j, column in enumerate(table.columns) if column.shown][:MOST_PANELS]


def _place(table: Table, backbone: str) -> str:
    from propulsion.harness.figures import style
    from propulsion.harness.tables.conditions import SUITES

    profile = table.rows[0].records[0]["run"]["profile"]
    return f"{style.name(SUITES.get(table.suite, table.suite))}, {style.name(profile)} profile, {style.name(backbone)}"


def _rule(rule: str) -> str:
    return "final weights" if rule == RULE else rule


Draw = Callable[[dict[str, Table], str], "Figure | None"]
KINDS: dict[str, tuple[str, Draw]] = {
    "pareto": ("Score against trainable parameters", pareto),
    "tasks": ("Score per task", tasks),
    "curves": ("Learning curves", curves),
    "gap": ("Best minus last", gap),
    "cost": ("Time and memory", cost),
    "degree": ("Degree against learning rate", degree),
}
