"""From the records of a results folder to the ablations' files: one document, one CSV, and a figure for each."""

from __future__ import annotations

from pathlib import Path

from propulsion.harness import sheets
from propulsion.harness.ablations import convergence, figures, tables
from propulsion.harness.ablations.axes import METHOD, ablations
from propulsion.harness.errors import UserError
from propulsion.harness.figures import style
from propulsion.harness.files import write_bytes
from propulsion.harness.tables import conditions, escape
from propulsion.harness.tables.as_csv import rows_to_csv
from propulsion.harness.tables.reading import Record, check_comparable, load_records

TITLE = "Ablations of Propulsion"


def write_report(results_dir: str | Path) -> tuple[list[sheets.Sheet], list[Path]]:
    """Write `tables/ablations.{md,csv,tex}`, `tables/convergence.csv` and `figures/ablation-*`.

    Raises:
        UserError: there is nothing to compare, or the folder cannot be written.
    """
    records = load_records(results_dir)
    found = [tables.scores(each) for each in ablations(records)]
    backbones, tasks = ({r["run"][name] for r in records} for name in ("backbone", "task"))
    speeds = [
        sheet
        for backbone in sorted(backbones)
        for task in sorted(tasks)
        if (sheet := convergence.sheet_of(records, backbone, task)) is not None
    ]
    if not found and not speeds:
        raise UserError(f"no ablation in {results_dir}/runs: run `make ablations` first")
    check_comparable(records)
    made = [*map(tables.sheet, found), *speeds]
    texts = {"md": _markdown(made, records), "tex": _latex(made, records)}
    rows = [row for each in found for row in tables.csv_rows(each)]
    folder = Path(results_dir)
    paths = sheets.write(folder / "tables", "ablations", texts | ({"csv": rows_to_csv(rows)} if rows else {}))
    if curves := convergence.csv_rows(records):
        paths += sheets.write(folder / "tables", "convergence", {"csv": rows_to_csv(curves)})
    return made, [*paths, *_draw(folder, found)]


def _conditions(records: list[Record]) -> list[tuple[str, str]]:
    """Of the ablations' own runs: what all of them share, and what the axes vary."""
    own = [r for r in records if r["run"]["method"] == METHOD]
    return conditions.conditions(own or records)


def _markdown(made: list[sheets.Sheet], records: list[Record]) -> str:
    lines = [f"# {TITLE}", "", *(f"- **{name}:** {escape.markdown(text)}" for name, text in _conditions(records))]
    lines += [
        "",
        "Scores × 100, final weights, mean ± standard deviation over seeds; `to base`: of the mean over tasks.",
    ]
    for sheet in made:
        lines += ["", f"## {escape.markdown(sheet.title)}", "", escape.markdown(sheet.legend), ""]
        lines += sheets.markdown(sheet)
    return "\n".join(lines) + "\n"


def _latex(made: list[sheets.Sheet], records: list[Record]) -> str:
    lines = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    lines += [f"% {escape.latex(f'{name}: {text}')}" for name, text in _conditions(records)]
    for sheet in made:
        lines += ["", *sheets.latex(sheet, "ablation-" + "".join(c for c in sheet.title.lower() if c.isalnum()))]
    return "\n".join(lines) + "\n"


def _draw(folder: Path, found: list[tables.Scores]) -> list[Path]:
    made = {}
    with style.drawing():
        for backbone in dict.fromkeys(each.ablation.backbone for each in found):
            own = [each for each in found if each.ablation.backbone == backbone]
            degrees = [each for each in own if each.ablation.axis.name.startswith("degree")]
            if degrees:
                made[f"ablation-{backbone}-degree"] = style.save(figures.degrees(degrees))
            for each in own:
                if each not in degrees:
                    made[f"ablation-{backbone}-{each.ablation.axis.name}"] = style.save(figures.levels(each))
    paths = []
    for name, files in made.items():
        for ending, content in files.items():
            path = folder / "figures" / f"{name}.{ending}"
            try:
                write_bytes(path, content)
            except OSError as error:
                raise UserError(f"{path} cannot be written ({error.strerror})") from error
            paths.append(path)
    return paths
