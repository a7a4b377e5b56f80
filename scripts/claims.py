"""The claims ledger: each claim of the paper, its source, our measurement, the verdict. For `make claims`.

    python -m scripts.claims
    python -m scripts.claims results_dir=results/paper reference=results/reference out=results/claims

Reads the records of one result set (only those of the paper profile count), writes <out>/claims.{md,csv,tex}.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from propulsion.harness import claims, references, sheets
from propulsion.harness.errors import UserError, unknown
from propulsion.harness.evidence import unusable
from propulsion.harness.record import REPOSITORY
from propulsion.harness.tables import escape, load_records
from propulsion.harness.tables.as_csv import rows_to_csv

RESULTS = REPOSITORY / "results"
KEYS = ("results_dir", "reference", "out")
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
COLUMNS = ("claim", "standing", "paper", "ours", "n", "spread", "verdict", "conditions")


def sheet(title: str, entries: list[claims.Entry]) -> sheets.Sheet:
    """The entries as a table of texts."""
    rows = tuple(
        (
            f"{e.statement} ({e.place})",
            e.standing or sheets.NONE,
            e.paper or sheets.NONE,
            e.ours or sheets.NONE,
            sheets.NONE if e.n is None else str(e.n),
            e.spread or sheets.NONE,
            e.verdict,
            e.conditions or sheets.NONE,
        )
        for e in entries
    )
    return sheets.Sheet(title, COLUMNS, rows, words=len(COLUMNS))


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


def main(arguments: list[str]) -> int:
    """Judge, write the three files, print one line for each claim. Exit code 2 on bad input."""
    try:
        chosen = dict(word.partition("=")[::2] for word in arguments)
        for key in chosen:
            if key not in KEYS:
                raise unknown("argument", key, KEYS)
        reference = Path(chosen.get("reference") or RESULTS / "reference")
        records = load_records(chosen.get("results_dir") or RESULTS / "paper")
        own = chosen.get("results_dir")
        out = Path(chosen.get("out") or (Path(own, "claims") if own else RESULTS / "claims"))
        entries = claims.ledger(
            references.read_claims(reference / "claims.csv"),
            references.read_scores(reference / "glue.csv"),
            records,
        )
        texts = {
            "md": to_markdown(entries),
            "csv": rows_to_csv([asdict(e) for e in entries]),
            "tex": to_latex(entries),
        }
        paths = sheets.write(out, "claims", texts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    refused = Counter(reason for record in records if (reason := unusable(record)) is not None)
    for reason, count in sorted(refused.items()):
        print(f"{count} of {len(records)} records do not count: {reason}")
    for entry in entries:
        if not entry.is_score:
            print(f"{entry.verdict:>21}  {entry.statement}")
    print(f"all {len(entries)}: {tally(entries)}")
    print("written:", *paths)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
