"""Tables of a results folder, on disk and on the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from propulsion.harness.errors import UserError
from propulsion.harness.files import write_text
from propulsion.harness.tables.as_csv import to_csv, to_suite_csv
from propulsion.harness.tables.build import build_all
from propulsion.harness.tables.model import Table
from propulsion.harness.tables.reading import read
from propulsion.harness.tables.render import to_latex, to_markdown, to_text
from propulsion.harness.tables.suites import present

logger = logging.getLogger(__name__)


def tables_of(results_dir: str | Path) -> dict[str, list[Table]]:
    """Suite -> its tables, one for each checkpoint rule; a suite that another one's table holds whole has none.

    Raises:
        UserError: there is no record, or there are records that cannot share a table.
    """
    reading = read(results_dir)
    for line in reading.left_out:
        logger.warning("left out: %s", line)
    if not reading.records:
        unread = f" ({len(reading.left_out)} could not be used)" if reading.left_out else ""
        raise UserError(
            f"no records in {results_dir}/runs{unread}: run `make reproduce-glue` first, "
            "or name another folder: make tables RESULTS_DIR=results/<name>"
        )
    return {suite: build_all(reading.records, suite, reading.left_out) for suite in present(reading.records)}


def write_tables(results_dir: str | Path, suites: Mapping[str, Sequence[Table]] | None = None) -> list[Path]:
    """Write `<results_dir>/tables/<suite>.{md,csv,tex}` and `<suite>-compared.csv`; the same records, the same bytes.

    Args:
        results_dir: the result set.
        suites: its tables, where they are made already.

    Raises:
        UserError: as `tables_of`, or the folder cannot be written.
    """
    folder = Path(results_dir, "tables")
    formats = {".md": to_markdown, ".csv": to_csv, ".tex": to_latex, "-compared.csv": to_suite_csv}
    paths = []
    for suite, tables in (tables_of(results_dir) if suites is None else suites).items():
        for ending, text in formats.items():
            path = folder / f"{_file_name(suite)}{ending}"
            _write(path, text(tables))
            paths.append(path)
    return paths


def print_table(table: Table, file: TextIO | None = None) -> None:
    """Print one table for the terminal."""
    (file or sys.stdout).write(to_text(table))


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"table {path} cannot be written ({error.strerror})") from error


def _file_name(suite: str) -> str:
    """A suite's name as a file name: a record is no way out of the folder."""
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in suite) or "_"
