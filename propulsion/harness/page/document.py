"""Data and template to one HTML text. Nothing of a record is ever taken for markup: Jinja escapes, JSON is data."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from propulsion.harness.figures import FigureFile
from propulsion.harness.page.data import Pack, clean
from propulsion.harness.sheets import Sheet
from propulsion.harness.tables import cells as texts
from propulsion.harness.tables import escape, overall
from propulsion.harness.tables.conditions import SUITES
from propulsion.harness.tables.model import RULES, Table

FOLDER = Path(__file__).parent
MOST_ROWS = 200  # of a suite, in the page without its script
LARGEST = 2_900_000  # bytes of the page; figures that do not fit stand beside it as files


def render(
    name: str,
    suites: Mapping[str, Sequence[Table]],
    figures: Sequence[tuple[FigureFile, str]],
    ledger: Sequence[Sheet],
    ledger_notes: Sequence[str],
) -> str:
    """The page.

    Args:
        name: of the result set.
        suites: suite -> its tables, one for each rule.
        figures: each with where its SVG lies, relative to the page.
        ledger: the claims, as tables of texts.
        ledger_notes: what to know about them, a line each.
    """
    pack = Pack()
    for tables in suites.values():
        pack.add(tables)
    data = json.dumps(pack.as_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    css, script = ((FOLDER / file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": escape.plain, "clean": clean, "url": lambda path: quote(path)}
    values = {
        "name": name,
        "suites": [tables[0] for tables in suites.values()],
        "scores": [_first(tables[0]) for tables in suites.values()],  # what is seen without the script
        "sheets": [sheet for tables in suites.values() for sheet in _overall(tables)],
        "ledger": ledger,
        "ledger_notes": ledger_notes,
        "css": Markup(css),
        "script": Markup(script),
        "data": Markup(_in_script(data)),
        "policy": f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(script)}'",
    }
    template = environment.get_template("page.html")
    bare = len(template.render(figures=[], **values).encode())
    return template.render(figures=_embedded(figures, LARGEST - bare), **values)


def _first(table: Table) -> Sheet:
    """A suite's scores as a plain table."""
    several = len({row.backbone for row in table.rows}) > 1
    names = ("method", "backbone") if several else ("method",)
    header = (*names, *texts.score_header(table), *texts.header(table)[1:4], *texts.header(table)[-3:])
    shown = [
        (
            *map(clean, (row.label, row.backbone)[: len(names)]),
            *texts.scores(table, row),
            *texts.row_names(row)[1:],
            *texts.costs(row),
        )
        for row in table.rows[:MOST_ROWS]
    ]
    legend = f"{texts.legend(table)}{overall.marks(table)}"
    if len(shown) < len(table.rows):
        legend += f" The first {len(shown)} of {len(table.rows)} rows."
    title = f"{table.title}. {table.rule}: {RULES[table.rule]}"
    return Sheet(title, header, tuple(shown), words=len(names), legend=legend)


def _overall(tables: Sequence[Table]) -> list[Sheet]:
    """The tables under a suite's first one, with the suite in their titles."""
    side = [sheet for sheet in [overall.rules(tables)] if sheet]
    name = SUITES.get(tables[0].suite, tables[0].suite)
    return [replace(sheet, title=f"{name}: {sheet.title}") for sheet in [*overall.of_table(tables[0]), *side]]


def _embedded(figures: Sequence[tuple[FigureFile, str]], room: int) -> list[dict[str, str]]:
    """Figures in their order, each with its picture inside while there is room, else with its place alone."""
    found = []
    for figure, path in figures:
        source = "data:image/svg+xml," + quote(figure.files["svg"].decode(), safe=" /:=;,()[]{}!?@$*'|^~`+\n")
        source = source.replace("\n", "%0A")
        room -= len(source) + 1000
        entry = {"suite": figure.suite, "backbone": figure.backbone, "kind": figure.kind, "title": figure.title}
        found.append({**entry, "path": path, "source": source if room > 0 else ""})
    return found


def _in_script(data: str) -> str:
    """JSON inside a script element: no character there can end it."""
    return data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
