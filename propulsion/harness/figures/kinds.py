"""The figures, one function each: a suite's tables and a backbone in, a drawing or None out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from propulsion.harness.figures import data
from propulsion.harness.tables import suites
from propulsion.harness.tables.model import GAP, Column, Table

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


def draw_all(tables: Sequence[Table], backbone: str | None = None) -> list[FigureFile]:
    """Every figure that the tables of one suite give, backbone by backbone, or of one backbone alone."""
    from propulsion.harness.figures import style

    found = []
    by_rule = {table.rule: table for table in tables}
    with style.drawing():
        for name in dict.fromkeys(row.backbone for row in tables[0].rows) if backbone is None else [backbone]:
            for kind, (title, draw) in KINDS.items():
                figure = draw(by_rule, name)
                if figure is not None:
                    found.append(FigureFile(tables[0].suite, name, kind, title, style.save(figure)))
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
    width = figure.get_figwidth() + 0.4  # for the names of the legend
    figure.set_figwidth(width)
    figure.subplots_adjust(left=0.6 / width, right=5.3 / width)
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
        label = style.name(rows[i].label, 24)
        axes.plot(x, y, color=own["color"], marker=own["marker"], linestyle="", markersize=7, label=label)
    style.log_counts(axes)
    axes.set_xlabel("trainable parameters, head included")
    axes.set_ylabel("score × 100")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="line: Pareto front", alignment="left")
    what = suites.average_name(table.suite, table.columns) if table.averaged > 1 else table.columns[0].label
    bars = "; bars: 95 % stratified bootstrap" if any(rows[i].overall.interval for i, *_ in points) else ""
    absent = [style.name(row.label) for row in rows if row.trainable and row.average.mean is None]
    lost = f"; without a score on every task: {', '.join(absent)}" if absent else ""
    note = f"{what}, {_rule(RULE)}{bars}{lost}"
    style.heading(figure, f"{_place(table, backbone)}: score against parameters", note + _cut(table, backbone))
    return figure


def tasks(tables: dict[str, Table], backbone: str) -> Figure | None:
    """Every method's mean on every task, with its seeds."""
    table = tables[RULE]
    shown = _with_scores(table, backbone)
    note = BARS if _several(table, backbone) else "one seed, so no bars"
    return _dots(table, backbone, "score per task, × 100", f"{_rule(RULE)}; {note}", shown)


def gap(tables: dict[str, Table], backbone: str) -> Figure | None:
    """What the paper's rule adds, by task."""
    table = tables[GAP]
    rows, shown = data.rows_of(table, backbone), _with_scores(table, backbone)
    moved = [(j, column) for j, column in shown if any(x for row in rows for x in row.cells[j].scores.values())]
    still = [column.label for entry in shown if entry not in moved for column in entry[1:]]
    note = "points that choosing the checkpoint on the reporting rows adds"
    note += "; bar: range of the seeds; dots: seeds" if _several(table, backbone) else "; one seed, so no bars"
    none = f"; no gap in any run: {', '.join(still)}" if still else ""
    return _dots(table, backbone, "best minus last", note + none, moved, zero=True)


def _dots(
    table: Table, backbone: str, title: str, below: str, shown: list[tuple[int, Column]], zero: bool = False
) -> Figure | None:
    from propulsion.harness.figures import style

    if not shown:
        return None
    rows = data.rows_of(table, backbone)
    height = max(1.1, 0.21 * len(rows) + 0.3)
    names = [style.name(row.label, 24) for row in rows]
    left = 0.35 + 0.072 * max(map(len, names))
    figure, panels = style.grid(len(shown), 5, 1.75, height, left)
    per_line = -(-len(shown) // -(-len(shown) // 5))
    looks = [style.look(i) for i in range(len(rows))]
    for n, ((j, column), axes) in enumerate(zip(shown, panels, strict=True)):
        found = [(i, mark) for i, row in enumerate(rows) if (mark := data.mark(row.cells[j])) is not None]
        places = [i for i, _ in found]
        colours = [looks[i]["color"] for i in places]
        bars = [mark.low for _, mark in found], [mark.high for _, mark in found]
        guides: dict[str, Any] = {
            "color": style.PALE,
            "linewidth": 0.6,
            "zorder": 0,
            "transform": axes.get_yaxis_transform(),
        }
        axes.hlines(range(len(rows)), 0, 1, **guides)
        axes.grid(False, axis="y")
        axes.hlines(places, *bars, color=colours, linewidth=1.6)
        seeds = [(x, i, looks[i]["color"]) for i, mark in found for x in mark.seeds]
        axes.scatter([x for x, *_ in seeds], [y for _, y, _ in seeds], c=[c for *_, c in seeds], s=4, alpha=0.6)
        for i, mark in found:
            axes.plot(mark.mean, i, marker=looks[i]["marker"], color=looks[i]["color"], markersize=5.5, linestyle="")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        first = n % per_line == 0  # of its line: the others share its names
        axes.set_yticks(range(len(rows)) if first else [], names if first else [])
        style.panel(axes, style.name(column.label, 24))
        if zero:
            axes.axvline(0, color=style.GREY, linewidth=0.8)
            axes.set_xlim(right=max(axes.get_xlim()[1], 0.1))
        axes.locator_params(axis="x", nbins=4)
    style.heading(figure, f"{_place(table, backbone)}: {title}", below + _cut(table, backbone))
    return figure


def curves(tables: dict[str, Table], backbone: str) -> Figure | None:
    """The primary score at every evaluation: a thin line for each seed, a thick one for their mean."""
    from matplotlib.lines import Line2D

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
    names = [style.name(row.label, 24) for row in rows]
    columns = style.legend_columns(figure, names)
    under = 0.15 + 0.18 * -(-len(rows) // columns)  # inches for the legend
    height = figure.get_figheight() + under
    figure.set_figheight(height)
    figure.subplots_adjust(top=1 - style.ABOVE / height, bottom=(style.BELOW + under) / height)
    for (column, lines), axes in zip(shown, panels, strict=True):
        for i, runs in enumerate(lines):
            look = style.look(i)
            if len(runs) > 1:
                apart = [point for run in runs for point in (*run, (math.nan, math.nan))]  # one path, with gaps
                axes.plot(*zip(*apart, strict=True), color=look["color"], linewidth=0.5, alpha=0.5)
            mean = data.mean_curve(runs)
            if mean:
                axes.plot(*zip(*mean, strict=True), **look, linewidth=1.4, markersize=3.5, markevery=0.15)
        axes.locator_params(nbins=4)
        axes.set_xlabel("step")
        axes.xaxis.set_label_coords(0.5, -0.3 / axes.get_position().height / height)
        style.panel(axes, style.name(column.label, 24))
    handles = [Line2D([], [], **style.look(i), markersize=4, linewidth=1.4) for i in range(len(rows))]
    figure.legend(handles, names, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=columns, fontsize=8)
    note = "thick: mean over seeds; thin: each seed" if _several(table, backbone) else "one seed"
    title = f"{_place(table, backbone)}: learning curves, score × 100"
    style.heading(figure, title, note + _cut(table, backbone))
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
            above = f"{style.name(group, 88)}\n" if column == 1 and len(groups) > 1 else ""
            style.panel(axes, above + what)
            axes.tick_params(labelleft=column == 1)
    note = style.name(groups[0][0], 160)
    if len(groups) > 1:
        note = "only runs on one device, in one precision and with as many neighbours stand in the same panels"
    style.heading(figure, f"{_place(table, backbone)}: time and memory", note + _cut(table, backbone))
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
    figure, panels = style.grid(len(shown), 3, 2.9, 2.2)
    figure.subplots_adjust(wspace=0.4)
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
        told = sorted(set(rates))[:: -(-len(set(rates)) // 5)]  # five names at most have room
        axes.set_xticks(told, [f"{x:g}" for x in told])
        axes.minorticks_off()
        axes.set_xlabel("learning rate")
        axes.set_ylabel("degree k")
        axes.set_title(style.name(column.label, 24), loc="left")
        figure.colorbar(spots, ax=axes, shrink=0.8, label="score × 100")
    style.heading(figure, f"{_place(table, backbone)}: degree against learning rate", f"score × 100, {_rule(RULE)}")
    return figure


def _shown(table: Table) -> list[tuple[int, Column]]:
    return [(j, column) for j, column in enumerate(table.columns) if column.shown][:MOST_PANELS]


def _with_scores(table: Table, backbone: str) -> list[tuple[int, Column]]:
    rows = data.rows_of(table, backbone)
    return [(j, column) for j, column in _shown(table) if any(row.cells[j].mean is not None for row in rows)]


def _several(table: Table, backbone: str) -> bool:
    """Whether a cell has more than one seed."""
    return any(len(cell.scores) > 1 for row in data.rows_of(table, backbone) for cell in row.cells)


def _cut(table: Table, backbone: str) -> str:
    """What a figure says where it has not every method."""
    count = sum(row.backbone == backbone for row in table.rows)
    return f"; the first {data.MOST_ROWS} of {count} rows, the tables have all" if count > data.MOST_ROWS else ""


def _place(table: Table, backbone: str) -> str:
    """`GLUE, mini profile, generated data, minilm`."""
    from propulsion.harness.figures import style
    from propulsion.harness.tables.conditions import SUITES, made_up

    records = [record for row in table.rows for record in row.records]
    words = [
        SUITES.get(table.suite, table.suite),
        f"{records[0]['run']['profile']} profile",
        made_up(records),
        backbone,
    ]
    return ", ".join(style.name(word) for word in words if word)


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
