"""The suite as a whole: means with intervals, each method against the reference, and the rules side by side."""

from __future__ import annotations

from collections.abc import Sequence

from propulsion.harness.statistics import ALPHA, POWER, SUITE_COVERAGE, Comparison, Interval, pairs_to_test
from propulsion.harness.tables import cells as texts
from propulsion.harness.tables import suites
from propulsion.harness.tables.comparison import MARGIN
from propulsion.harness.tables.model import GAP, NONE, RULES, Cell, Row, Sheet, Table

MANY_SEEDS = 1000


def of_table(table: Table) -> list[Sheet]:
    """What stands under a score table: nothing under the gap, and nothing where there is one task or one row."""
    made = (suite(table), against(table)) if table.rule != GAP else ()
    return [sheet for sheet in made if sheet is not None]


def suite(table: Table) -> Sheet | None:
    """Mean, median and interquartile mean over the suite's tasks, each method that has all of them."""
    rows = [row for row in table.rows if row.overall.median is not None]
    if table.averaged < 2 or not rows:
        return None
    body = [
        (
            *_names(table, row),
            f"{texts.number(row.average, table.rule)}",
            interval(row.overall.interval),
            points(row.overall.median),
            points(row.overall.iqm),
            interval(row.overall.iqm_interval),
            f"{table.averaged} × {len(row.average.scores)}",
        )
        for row in rows
    ]
    header = (*_header(table), _what(table), "95 %", "median", "IQM", "95 %", "tasks × seeds")
    seeds = {len(row.average.scores) for row in rows}
    known = [f"{SUITE_COVERAGE[n]:.0%} with {n}" for n in sorted(seeds) if n in SUITE_COVERAGE]
    true = f" With few seeds they are too narrow: over five tasks they hold the true mean in {', '.join(known)} seeds."
    legend = (
        "Median of the tasks' means; IQM: the mean of the middle half of all runs. Intervals: percentile bootstrap, "
        f"seeds drawn within each task; none with one seed.{true if known else ''}"
    )
    return Sheet(f"Over the suite, {table.rule}", header, tuple(body), words=len(_header(table)), legend=legend)


def against(table: Table) -> Sheet | None:
    """Each method against the reference row of its backbone, over the tasks and seeds that both have."""
    found = [row for row in table.rows if row.overall.comparison is not None]
    body = [(*_names(table, row), *_compared(row.overall.comparison, row.overall.p)) for row in found]
    if not body:
        return None
    references = list(dict.fromkeys(texts.clip(row.reference) for row in found))
    name = references[0] if len(references) == 1 else "reference"
    header = (
        *(*_header(table), f"{name} minus method", "95 %", f"P({name} better)", "tasks × seeds", "p", "p (Holm)"),
        *(f"within {MARGIN:g} point", "seeds that would do"),
    )
    few = [texts.clip(row.label) for row in table.rows if row.reference and row.overall.comparison is None]
    legend = (
        f"{name} minus method: mean of {' or '.join(references)}, of the same backbone, minus that of the row's "
        f"method, in points, over the tasks and seeds that both have. P({name} better): chance that a run of the "
        "former beats a run of the latter on the same task. p: two-sided sign-flip test over pairs of one task and "
        f"seed, about these tasks only; Holm over all rows, {ALPHA:.0%}. "
        "It treats all pairs alike, so that a difference that rests on one task does not pass, while the interval "
        f"takes the tasks as they are. Within {MARGIN:g} point: two one-sided t "
        "tests over the seeds' means. Seeds that would do: for the test to be able to reject, or to show this "
        f"difference with {POWER:.0%} chance if it is the true one."
    )
    if few:
        legend += f" Not compared, with fewer than two tasks or seeds in common: {', '.join(dict.fromkeys(few))}."
    return Sheet(f"Compared, {table.rule}", header, tuple(body), words=len(_header(table)), legend=legend)


def _compared(found: Comparison | None, p: float | None) -> tuple[str, ...]:
    assert found is not None
    return (
        signed(found.difference),
        interval(found.interval, sign=True),
        f"{found.improvement:.2f}",
        f"{found.tasks} × {found.seeds}",
        "no test" if found.p is None else p_text(found.p),
        "no test" if p is None else p_text(p),
        verdict(found),
        seeds_text(found, p),
    )


def verdict(found: Comparison) -> str:
    """Whether the suite's means are equivalent: `yes`, `no`, `undecided`, or a dash with one seed."""
    test = found.equivalence
    if test is None:
        return NONE
    return "yes" if test.equivalent else "no" if test.different else "undecided"


def seeds_text(found: Comparison, p: float | None) -> str:
    """How many seeds would do for the claim that there is a difference."""
    if p is not None and p <= ALPHA:
        return "enough"
    show = found.seeds_to_show
    if show is None:
        return NONE
    about = f"over {MANY_SEEDS:,}" if show > MANY_SEEDS else f"about {show:,}"
    return f"≥ {found.seeds_to_test} to test, {about} to show" if found.p is None else f"{about} to show"


def rules(tables: Sequence[Table]) -> Sheet | None:
    """The same runs by every rule, side by side; None unless all rules are there."""
    by_rule = {table.rule: table for table in tables}
    if set(by_rule) != set(RULES):
        return None
    first, gaps = tables[0], by_rule[GAP]
    shown = [j for j, column in enumerate(first.columns) if column.shown]
    body = []
    for i, row in enumerate(gaps.rows):
        averages = [_average(table, i) for table in by_rule.values()]
        found = [(row.cells[j].mean or 0.0, j) for j in shown if row.cells[j].mean is not None]
        largest = max(found, key=lambda item: (item[0], -item[1]), default=None)
        most = NONE
        if largest is not None:
            most = f"{signed(100 * largest[0])} ({texts.clip(gaps.columns[largest[1]].label)})" if largest[0] else "0.0"
        body.append((*_names(gaps, row), *averages, most))
    what = _what(first) if first.averaged > 1 else first.columns[shown[0]].label
    header = (*_header(gaps), *by_rule, "largest gap")
    legend = f"{what}, × 100. {GAP}: {RULES[GAP]}; largest gap: on one task, mean over seeds."
    return Sheet("The same runs by each rule", header, tuple(body), words=len(_header(gaps)), legend=legend)


def _average(table: Table, i: int) -> str:
    row = table.rows[i]
    cell: Cell = row.average if table.averaged > 1 else row.cells[0]
    return texts.number(cell, table.rule)


def marks(table: Table) -> str:
    """What the marks in the score cells mean, and why there are none where no test was made."""
    references = list(dict.fromkeys(row.reference for row in table.rows if row.reference))
    if table.rule == GAP or not references:
        return ""
    names = " or ".join(map(texts.clip, references))
    tested = any(cell.p is not None for row in table.rows for cell in row.cells)
    overall = any(row.average.p is not None for row in table.rows) and table.averaged > 1
    none = f"no test within a task: that takes {pairs_to_test()} shared seeds or more" if not tested else ""
    if not tested and not overall:
        return f" No marks: {none}."
    text = f" *: differs from {names} by a paired sign-flip test over shared seeds (Holm, {ALPHA:.0%})"
    return f"{text}; {none}." if none else f"{text}."


def p_text(p: float) -> str:
    """Two digits; never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def points(value: float | None) -> str:
    """One decimal, never `-0.0`."""
    return NONE if value is None else f"{round(value, 1) + 0.0:.1f}"


def signed(value: float) -> str:
    """One decimal and a sign, but no sign for 0."""
    rounded = round(value, 1) + 0.0
    return f"{rounded:+.1f}" if rounded else "0.0"


def interval(bounds: Interval | None, sign: bool = False) -> str:
    """`56.8 to 58.0`, in points."""
    if bounds is None:
        return NONE
    low, high = (signed(x) if sign else points(x) for x in (bounds.low, bounds.high))
    return f"{low} to {high}"


def _what(table: Table) -> str:
    return suites.average_name(table.suite, table.columns)


def _several(table: Table) -> bool:
    return len({row.backbone for row in table.rows}) > 1


def _header(table: Table) -> tuple[str, ...]:
    return ("backbone", "method") if _several(table) else ("method",)


def _names(table: Table, row: Row) -> tuple[str, ...]:
    label = texts.clip(row.label)
    return (texts.clip(row.backbone), label) if _several(table) else (label,)


def csv_rows(table: Table) -> list[dict[str, object]]:
    """All numbers of the suite as a whole, unrounded, in points; one row for each method."""
    return [_csv_row(table, row) for row in table.rows]


def _csv_row(table: Table, row: Row) -> dict[str, object]:
    found, own = row.overall.comparison, row.overall
    test = found.equivalence if found else None
    low, high = (found.interval.low, found.interval.high) if found and found.interval else (None, None)
    return {
        **{"suite": table.suite, "rule": table.rule, "backbone": row.backbone},
        **{"method": row.method, "variant": row.variant},
        "tasks": table.averaged,
        "seeds": len(row.average.scores),
        "mean": None if row.average.mean is None else 100 * row.average.mean,
        "mean_low": own.interval.low if own.interval else None,
        "mean_high": own.interval.high if own.interval else None,
        "median": own.median,
        "iqm": own.iqm,
        "iqm_low": own.iqm_interval.low if own.iqm_interval else None,
        "iqm_high": own.iqm_interval.high if own.iqm_interval else None,
        "reference": row.reference,
        "shared_tasks": found.tasks if found else None,
        "shared_seeds": found.seeds if found else None,
        "reference_minus_method": found.difference if found else None,
        "reference_minus_method_low": low,
        "reference_minus_method_high": high,
        "probability_of_improvement": found.improvement if found else None,
        "p": found.p if found else None,
        "p_holm": own.p,
        "equivalence_margin": MARGIN if test else None,
        "equivalence_p": test.p if test else None,
        "equivalence": verdict(found) if found and test else "",
        "seeds_to_test": found.seeds_to_test if found else None,
        "seeds_to_show": found.seeds_to_show if found else None,
    }
