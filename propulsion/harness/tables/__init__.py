"""Records to tables: Markdown, CSV and LaTeX from the same cells, and from nothing but the records."""

from propulsion.harness.tables.as_csv import to_csv
from propulsion.harness.tables.build import build
from propulsion.harness.tables.model import RULES, Cell, Row, Table
from propulsion.harness.tables.reading import Reading, load_records, read
from propulsion.harness.tables.render import to_latex, to_markdown, to_text
from propulsion.harness.tables.write import print_table, tables_of, write_tables

__all__ = [
    "RULES",
    "Cell",
    "Reading",
    "Row",
    "Table",
    "build",
    "load_records",
    "print_table",
    "read",
    "tables_of",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_text",
    "write_tables",
]
