"""The claims ledger as tables of texts: for `make claims` and for the report page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import replace

from propulsion.harness import claims, sheets
from propulsion.harness.tables import escape

TITLE = "Does the paper hold? Its claims, one by one"
EXPLAINED = (
    "Only runs of the paper profile count: published evaluation rows, pretrained weights, training not cut "
    "short, not started from another run, and by the cell's recipe (for claims of speed, evaluated at any steps). "
    f"Scores, in points of 100: two one-sided t tests at 5 % over {claims.SEEDS} seeds or more, "
    f"margin {claims.POINTS:g} point. Memory: margin {claims.RATIO:.0%} of the ratio. Counts: within one "
    f"unit of the paper's last digit; their ratios within {claims.COUNT:.0%}, or at least the number where "
    "the paper says `over`.",
    "Standing: first-hand, the paper's abstract; second-hand, a summary of the paper; code, the authors' "
    "public notebooks (one run, no seed); user-supplied, filled in by a reader of the paper.",
)
COLUMNS = ("claim", "standing", "paper", "ours", "difference", "n", "spread", "verdict", "conditions")


def sheet(title: str, entries: list[claims.Entry]) -> sheets.Sheet:
    """The entries as a table of texts."""
    rows = tuple(
        (
            f"{e.statement} ({e.place})",
            e.standing or sheets.NONE,
            e.paper or sheets.NONE,
            e.ours or sheets.NONE,
            difference(e),
            sheets.NONE if e.n is None else str(e.n),
            e.spread or sheets.NONE,
            e.verdict,
            e.conditions or sheets.NONE,
        )
        for e in entries
    )
    return sheets.Sheet(title, COLUMNS, rows, words=len(COLUMNS))


def difference(entry: claims.Entry) -> str:
    """Ours minus the paper's, in points, of a score that both have."""
    if not entry.is_score or entry.value is None or not entry.paper:
        return sheets.NONE
    return f"{round(entry.value - float(entry.paper), 1) + 0.0:+.1f}"


def beside(entries: list[claims.Entry], cells: Container[tuple[str, str, str]]) -> sheets.Sheet | None:
    """Ours beside the paper's, `not available` where no source gives it: of the (task, backbone, method) in `cells`."""
    own = [e for e in entries if e.is_score and tuple(e.id.split("/")[:3]) in cells]
    own = [e if e.paper else replace(e, paper=claims.NOT_AVAILABLE) for e in own]
    return sheet("Ours beside the paper's", own) if own else None


def parts(entries: list[claims.Entry]) -> list[sheets.Sheet]:
    """The claims, and the reference scores that have a number; the CSV has all."""
    stated = [e for e in entries if not e.is_score]
    known = [e for e in entries if e.is_score and e.verdict != claims.NOT_AVAILABLE]
    shown = [sheet("Claims", stated)]
    return shown + ([sheet("Reference scores", known)] if known else [])


def missing(entries: list[claims.Entry]) -> str:
    """What to do about the scores that no source gives."""
    count = sum(e.is_score and e.verdict == claims.NOT_AVAILABLE for e in entries)
    return (
        f"{count} score cells of the paper's GLUE table are not available: the table could not be had, and "
        "none is made up. With the paper at hand, type the values into results/reference/glue.csv, column "
        "`value`, and run `make claims` again."
    )


def tally(entries: list[claims.Entry]) -> str:
    """`holds 2, holds only as counted 4, ...`."""
    found = Counter(e.verdict for e in entries)
    return ", ".join(f"{verdict} {found[verdict]}" for verdict in claims.VERDICTS if found[verdict])


def to_markdown(entries: list[claims.Entry]) -> str:
    """The whole ledger."""
    lines = [f"# {TITLE}", "", *(f"- {line}" for line in EXPLAINED)]
    lines += [f"- **{verdict}:** {meaning}." for verdict, meaning in claims.VERDICTS.items()]
    for part in parts(entries):
        lines += ["", f"## {part.title}", "", *sheets.markdown(part)]
    return "\n".join([*lines, "", missing(entries)]) + "\n"


def to_latex(entries: list[claims.Entry]) -> str:
    """One table for the claims and one for the reference scores."""
    lines = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    lines += [f"% {escape.latex(line)}" for line in EXPLAINED]
    for part in parts(entries):
        lines += ["", *sheets.latex(part, part.title.lower().replace(" ", "-"))]
    return "\n".join([*lines, "", f"% {escape.latex(missing(entries))}"]) + "\n"
