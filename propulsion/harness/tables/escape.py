"""Text from records made harmless: shown as text in Markdown, LaTeX, CSV and a terminal, never obeyed."""

from __future__ import annotations

import re

LONGEST = 2000  # characters of one line
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "`": r"\textasciigrave{}", '"': "''",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "…": r"\ldots{}",
    "‡": r"$\ddagger$", "≥": r"$\geq$",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "†": r"$\dagger$", "ρ": r"$\rho$", "—": "---", "–": "--",
}  # fmt: skip


def plain(text: str) -> str:
    """One line, nothing that is not printable (control, direction and zero-width characters), not endless."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def markdown(text: str) -> str:
    """For a Markdown cell or line: no HTML, table bar, emphasis, code, link or formula."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$!])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)  # inside a word it is a letter


def latex(text: str) -> str:
    """For running LaTeX text. Characters that pdflatex has no glyph for become their code point."""
    return "".join(LATEX.get(char, char if char.isascii() else f"[U+{ord(char):04X}]") for char in plain(text))


def csv_text(text: str) -> str:
    """For a CSV cell: a spreadsheet must not take it for a formula."""
    text = plain(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
