"""Everything that is made from the records of one result set: tables, figures and the report page."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from propulsion.harness import claims, ledger, references, sheets
from propulsion.harness.errors import UserError
from propulsion.harness.figures import FigureFile, draw_suites
from propulsion.harness.files import write_bytes
from propulsion.harness.ntk import records as kernels
from propulsion.harness.page import render
from propulsion.harness.record import REPOSITORY
from propulsion.harness.tables import Table, tables_of, write_tables
from propulsion.harness.tables.as_csv import rows_to_csv
from propulsion.harness.tables.reading import Record

PAGE = "index.html"
NOT_BESIDE = "No score of this result set stands beside the paper's: only the paper profile is compared with it."


def write_report(results_dir: str | Path, processes: int = 1) -> tuple[dict[str, list[Table]], list[Path]]:
    """Write `tables/`, `figures/` and `index.html` of a result set; the same records give the same bytes.

    Args:
        results_dir: the result set.
        processes: to draw in, as `figures.draw_suites` takes them.

    Returns:
        The tables by suite, and the files.

    Raises:
        UserError: no records, records that cannot share a table, or a folder that cannot be written.
    """
    suites = tables_of(results_dir)
    paths = write_tables(results_dir, suites)
    figures = [(figure, figure_path(figure)) for figure in draw_suites(list(suites.values()), processes)]
    for figure, place in figures:
        for ending, content in figure.files.items():
            paths.append(_write(Path(results_dir, f"{place}.{ending}"), content))
    rows = [row for tables in suites.values() for row in tables[0].rows]
    records = list({id(record): record for row in rows for record in row.records}.values())  # RTE is in two suites
    entries = _ledger(records, kernels.read(results_dir))
    beside = _beside(records, entries)
    if beside is not None:
        paths += sheets.write(Path(results_dir, "tables"), "paper", _formats(beside))
    name = Path(results_dir).resolve().name
    shown = [*([beside] if beside else []), *ledger.parts(entries)]
    notes = [*([] if beside else [NOT_BESIDE]), *ledger.EXPLAINED, ledger.missing(entries)]
    paths.append(_write(Path(results_dir, PAGE), render(name, suites, figures, shown, notes).encode()))
    return suites, paths


def _beside(records: list[Record], entries: list[claims.Entry]) -> sheets.Sheet | None:
    """None unless the set is of the paper profile: nothing else is put beside the paper's numbers."""
    runs = [record["run"] for record in records if record["run"]["profile"] == "paper"]
    return ledger.beside(entries, {(run["task"], run["backbone"], run["method"]) for run in runs})


def _formats(sheet: sheets.Sheet) -> dict[str, str]:
    """The three formats of one sheet."""
    return {
        "md": "\n".join([f"# {sheet.title}", "", *sheets.markdown(sheet)]) + "\n",
        "csv": rows_to_csv([dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]),
        "tex": "\n".join(["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.", *sheets.latex(sheet, "paper")])
        + "\n",
    }


def figure_path(figure: FigureFile) -> str:
    """Where a figure lies, without its ending: `figures/glue-minilm-pareto`. No name is a way out of the folder."""
    return f"figures/{_word(figure.suite)}-{_word(figure.backbone)}-{figure.kind}"


def _word(name: str) -> str:
    """A name as part of a file name; one that had to be changed carries a digest, so that two never meet."""
    word = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:40]
    return word if word == name else f"{word}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _ledger(records: list[Record], measured: list[Record]) -> list[claims.Entry]:
    """The claims judged by these records, and these kernels, alone."""
    folder = REPOSITORY / "results" / "reference"
    claimed, scores = references.read_claims(folder / "claims.csv"), references.read_scores(folder / "glue.csv")
    return claims.ledger(claimed, scores, records, counts=_counts(), kernels=measured)


@functools.cache
def _counts() -> claims.Counts:
    """Parameter counts depend on no record: made once, however many result sets there are."""
    return claims.Counts()


def _write(path: Path, content: bytes) -> Path:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
    return path
