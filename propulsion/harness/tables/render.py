"""A table as Markdown, LaTeX and terminal text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from propulsion.harness import sheets
from propulsion.harness.tables import cells as texts
from propulsion.harness.tables import escape, overall
from propulsion.harness.tables.model import RULES, Table


def to_markdown(tables: Sequence[Table]) -> str:
    """One document: the conditions once, then a section for each checkpoint rule."""
    first = tables[0]
    lines = [f"# {escape.markdown(first.title)}", ""]
    lines += [f"- **{name}:** {escape.markdown(text)}" for name, text in first.conditions]
    for table in tables:
        lines += ["", f"## {_rule_title(table)}", "", escape.markdown(_legend(table))]
        for backbone, rows in texts.by_backbone(table):
            lines += ["", f"### {escape.markdown(backbone)}"] if len(texts.by_backbone(table)) > 1 else []
            body = [texts.cells(table, row) for row in rows]
            lines += ["", *_grid(texts.header(table), body, escape.markdown)]
        for sheet in overall.of_table(table):
            lines += _section(sheet, "###")
    side_by_side = overall.rules(tables)
    lines += _section(side_by_side, "##") if side_by_side else []
    lines += ["", *(f"- {escape.markdown(note)}" for note in first.notes)]
    return "\n".join(lines).rstrip() + "\n"


def to_text(table: Table) -> str:
    """For a terminal: the conditions, the scores, then size and cost beside each other."""
    lines = [escape.plain(table.title), ""]
    lines += [escape.plain(f"{name}: {text}") for name, text in table.conditions]
    lines += ["", f"{_rule_title(table)}. {_legend(table)}"]
    for backbone, rows in texts.by_backbone(table):
        scores = [[texts.clip(row.label), *texts.scores(table, row)] for row in rows]
        costs = [[*texts.row_names(row), *texts.costs(row)] for row in rows]
        lines += ["", *_grid([escape.plain(backbone), *texts.score_header(table)], scores, escape.plain)]
        header = [escape.plain(backbone), *texts.header(table)[1:4], *texts.header(table)[-3:]]
        lines += ["", *_grid(header, costs, escape.plain)]
    compared = overall.against(table)
    if compared:
        lines += ["", *_grid(list(compared.header), [list(row) for row in compared.rows], escape.plain)]
        lines += [escape.plain(compared.legend)]
    lines += ["", *map(escape.plain, table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(tables: Sequence[Table]) -> str:
    """One `table*` for each rule, to be pasted as it is; needs booktabs and graphicx."""
    lines = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    lines += [f"% {escape.latex(f'{name}: {text}')}" for name, text in tables[0].conditions]
    for table in tables:
        header = [escape.latex(name) for name in texts.header(table)]
        lines += [
            "",
            "\\begin{table*}[t]",
            "\\centering",
            f"\\caption{{{escape.latex(f'{table.title}. {_rule_title(table)}. {_legend(table)}')}}}",
            f"\\label{{tab:{_word(table.suite)}-{_word(table.rule)}}}",
            "\\resizebox{\\textwidth}{!}{%",
            f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            "\\toprule",
            " & ".join(header) + " \\\\",
        ]
        for backbone, rows in texts.by_backbone(table):
            lines += ["\\midrule"]
            if len(texts.by_backbone(table)) > 1:
                lines += [f"\\multicolumn{{{len(header)}}}{{l}}{{\\emph{{{escape.latex(backbone)}}}}} \\\\"]
            lines += [" & ".join(map(escape.latex, texts.cells(table, row))) + " \\\\" for row in rows]
        lines += ["\\bottomrule", "\\end{tabular}}", "\\end{table*}"]
        for sheet in overall.of_table(table):
            lines += ["", *sheets.latex(sheet, _word(f"{table.suite}-{sheet.title}"))]
    side_by_side = overall.rules(tables)
    lines += ["", *sheets.latex(side_by_side, _word(f"{tables[0].suite}-rules"))] if side_by_side else []
    lines += ["", *(f"% {escape.latex(note)}" for note in tables[0].notes)]
    return "\n".join(lines).rstrip() + "\n"


def _grid(header: list[str], body: list[list[str]], escaped: Callable[[str], str]) -> list[str]:
    """A pipe table, padded so that it also reads well as plain text: first column left, the rest right."""
    rows = [[escaped(cell) for cell in row] for row in (header, *body)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(header))]

    def line(row: list[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return [line(rows[0]), f"|{rule}|", *map(line, rows[1:])]


def _section(sheet: sheets.Sheet, level: str) -> list[str]:
    lines = ["", f"{level} {escape.markdown(sheet.title)}", "", *sheets.markdown(sheet)]
    return lines + (["", escape.markdown(sheet.legend)] if sheet.legend else [])


def _legend(table: Table) -> str:
    return texts.legend(table) + overall.marks(table)


def _rule_title(table: Table) -> str:
    return f"{table.rule}: {RULES[table.rule]}"


def _word(text: str) -> str:
    return "".join(char for char in text if char.isascii() and (char.isalnum() or char == "-")) or "table"
