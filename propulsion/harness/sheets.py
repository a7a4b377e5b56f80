"""Small reports that are no score tables (counts, claims): the same cells as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from propulsion.harness.errors import UserError
from propulsion.harness.files import write_text
from propulsion.harness.tables import escape
from propulsion.harness.tables.model import NONE, Sheet

__all__ = ["NONE", "Sheet", "latex", "markdown", "write"]

LONGEST = 48  # characters that a column is padded to


def markdown(sheet: Sheet) -> list[str]:
    """The grid as a pipe table, padded so that it reads well as plain text; long texts are not padded."""
    rows = [[escape.markdown(cell) for cell in row] for row in (sheet.header, *sheet.rows)]
    widths = [min(LONGEST, max(3, *(len(row[i]) for row in rows))) for i in range(len(sheet.header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(w) if i < sheet.words else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (w + 2) if i < sheet.words else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return [line(rows[0]), f"|{rule}|", *map(line, rows[1:])]


def latex(sheet: Sheet, label: str) -> list[str]:
    """The grid as a `table*` to be pasted as it is; needs booktabs and graphicx."""
    return [
        "\\begin{table*}[t]",
        "\\centering",
        f"\\caption{{{escape.latex(f'{sheet.title}. {sheet.legend}' if sheet.legend else sheet.title)}}}",
        f"\\label{{tab:{label}}}",
        "\\resizebox{\\textwidth}{!}{%",
        f"\\begin{{tabular}}{{{'l' * sheet.words}{'r' * (len(sheet.header) - sheet.words)}}}",
        "\\toprule",
        " & ".join(map(escape.latex, sheet.header)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(escape.latex, row)) + " \\\\" for row in sheet.rows),
        "\\bottomrule",
        "\\end{tabular}}",
        "\\end{table*}",
    ]


def write(folder: Path, name: str, texts: Mapping[str, str]) -> list[Path]:
    """Write `<folder>/<name>.<ending>` for each ending, each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for ending, text in texts.items():
        path = folder / f"{name}.{ending}"
        try:
            write_text(path, text)
        except OSError as error:
            reason = f"{path} cannot be written ({error.strerror})"
            raise UserError(f"{reason}; set results_dir=<a folder that can>") from error
        paths.append(path)
    return paths
