"""Every table, every figure and the report page again, from the records alone.

python -m scripts.tables                              every result set in results/
python -m scripts.tables results_dir=results/mini     one of them
"""

from __future__ import annotations

import sys
from pathlib import Path

from propulsion.harness import figures
from propulsion.harness.errors import UserError, ended, unknown
from propulsion.harness.report import write_report
from propulsion.harness.tables import print_table

RESULTS = Path("results")


def print_tables(results_dir: str) -> None:
    """Write the report of one result set, and print each suite's table by its first rule, the final weights.

    Raises:
        UserError: no records, records that cannot share a table, or a folder that cannot be written.
    """
    suites, paths = write_report(results_dir, figures.cores())
    for tables in suites.values():
        print_table(tables[0])
        print()
    print("written:", *paths)


def results_dirs(arguments: list[str]) -> list[str]:
    """The folder that `results_dir=` names, else every result set in `results/`.

    Raises:
        UserError: another argument, an empty one, or no result set to be found.
    """
    named = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "results_dir":
            raise unknown("argument", key, ["results_dir"])
        if not value:
            raise UserError("results_dir is empty: type results_dir=results/<name>")
        named.append(value)
    found = named or sorted(str(folder.parent) for folder in RESULTS.glob("*/runs") if folder.is_dir())
    if not found:
        raise UserError("no result set in results/: run `make reproduce-glue`, or type results_dir=<folder>")
    return found


def main(arguments: list[str]) -> int:
    """Write and print the tables. Exit code 2, with one line for each folder that has none."""
    code = 0
    try:
        folders = results_dirs(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for folder in folders:
        try:
            print_tables(folder)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(ended(main))
