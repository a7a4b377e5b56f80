"""Data and template to one HTML text. Nothing of a record is ever taken for markup: Jinja escapes, JSON is data."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from propulsion.harness.figures import FigureFile
from propulsion.harness.page.data import Pack, clean
from propulsion.harness.sheets import Sheet
from propulsion.harness.tables import escape
from propulsion.harness.tables.model import Table

FOLDER = Path(__file__).parent
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
