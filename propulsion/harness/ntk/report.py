"""From kernel records to files: tables, figures, and the words on what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from propulsion.harness import sheets
from propulsion.harness.errors import UserError
from propulsion.harness.figures import style
from propulsion.harness.files import write_bytes
from propulsion.harness.ntk import figures, tables, verdict
from propulsion.harness.ntk.records import by_task, check_alike, read
from propulsion.harness.tables.as_csv import rows_to_csv

Record = dict[str, Any]


def write_report(results_dir: str | Path) -> tuple[list[sheets.Sheet], list[Path]]:
    """Write `tables/ntk.{md,csv,tex}` and `figures/ntk-*.{svg,png}` from the kernel records alone.

    Raises:
        UserError: there is no kernel record, records that cannot share a table, or a folder that cannot be written.
    """
    entries = read(results_dir)
    if not entries:
        raise UserError(f"no kernel records in {results_dir}/kernels: run `make ntk` first")
    groups = by_task(entries)
    for records in groups.values():
        check_alike(records)
    made = [tables.sheet(records) for records in groups.values()]
    words = [line for backbone in dict.fromkeys(key[0] for key in groups) for line in said(entries, backbone)]
    texts = {
        "md": tables.to_markdown(made, words),
        "csv": rows_to_csv(tables.csv_rows(entries)),
        "tex": tables.to_latex(made, words),
    }
    return made, [*sheets.write(Path(results_dir, "tables"), "ntk", texts), *_draw(Path(results_dir), groups)]


def said(entries: Sequence[Record], backbone: str) -> list[str]:
    """What the kernels of a backbone say about the paper's claim, a line for each task; [] without real rows."""
    lines = []
    for each in verdict.found(entries, backbone):
        close = f"close ({verdict.CLOSE:g} or more in every seed)" if each.close else "not close in every seed"
        controls = {"random directions": each.directions, "single random weights": each.subset}
        against = [
            f"{'closer' if each.beats(control) else 'not closer'} than as many {name} in every seed"
            for name, control in controls.items()
        ]
        lines.append(f"{backbone}, {each.words}: {close}; {', '.join(against)}.")
    return lines


def _draw(folder: Path, groups: dict[tuple[str, str], list[Record]]) -> list[Path]:
    made = {}
    with style.drawing():
        for (backbone, task), records in groups.items():
            made[f"ntk-{backbone}-{task}-heatmaps"] = style.save(figures.heatmaps(records))
            made[f"ntk-{backbone}-{task}-spectra"] = style.save(figures.spectra(records))
        for backbone in dict.fromkeys(key[0] for key in groups):
            own = [records for key, records in groups.items() if key[0] == backbone]
            if figures.controlled(own):
                made[f"ntk-{backbone}-closeness"] = style.save(figures.closeness(own))
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
