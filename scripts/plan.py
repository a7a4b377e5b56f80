"""The cells of a sweep: done, failed, to do, and an estimate of the time left. `make plan` calls this.

    python -m scripts.plan suite=glue profile=paper tasks=rte,mrpc methods=lora,propulsion seeds=0,1,2

Takes the same words as scripts.reproduce and starts nothing. `watch=10` shows it again every ten seconds until all is
done; Ctrl-C ends it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch

from propulsion.harness import configs, leases, packing, planning, sheets, staleness
from propulsion.harness.errors import UserError
from propulsion.harness.tables import load_records
from scripts.reproduce import Request, choose_profile, leave_out_absent, parse, results_dir, sweep_command, sweep_words

STATES = ("done", "running", "failed", "to do")
HEADER = ("backbone", "method", "cells", *STATES, "hours left", "speed", "recipes")


def sheet(lines: list[planning.Line]) -> sheets.Sheet:
    """One row for each backbone and method, and the sum."""
    rows = [_row(line.backbone, line.method, line) for line in lines]
    whole = planning.Line("", "", [cell for line in lines for cell in line.cells])
    return sheets.Sheet("", HEADER, (*rows, _row("all", "", whole)), words=2)


def _row(backbone: str, method: str, line: planning.Line) -> tuple[str, ...]:
    states = [str(line.count(state)) for state in STATES]
    unknown = any(cell.seconds is None for cell in line.cells)
    speeds = {"measured" if cell.measured else "assumed" for cell in line.cells}
    kinds = Counter(cell.recipe for cell in line.cells)
    return (
        *(backbone, method, str(len(line.cells)), *states),
        f"{line.hours:.2g}{' and more' if unknown else ''}" if line.hours < 10 else f"{line.hours:,.0f}",
        " and ".join(sorted(speeds)),
        ", ".join(f"{kinds[kind]} {kind}" for kind in ("published", "ours", "none") if kinds[kind]),
    )


def remarks(lines: list[planning.Line], speeds: planning.Speeds) -> list[str]:
    """Where the numbers come from."""
    cells = [cell for line in lines for cell in line.cells]
    notes = ["hours: of one device, cell after cell, evaluation included"]
    assumed = sorted({c.settings.backbone.name for c in cells if not c.measured and c.state != "done"})
    if assumed:
        guesses = ", ".join(f"{name} {speeds.assumed(name):g}" for name in assumed)
        notes.append(f"assumed, not measured: {guesses} training samples per second, until there are records")
    if speeds.devices:
        notes.append(f"measured on: {', '.join(sorted(speeds.devices))}")
    rows = sorted({c.settings.task.name for c in cells if c.seconds is None})
    if rows:
        notes.append(f"no estimate for {', '.join(rows)}: their training rows are not known here")
    notes.append("recipes: published, a value or more has a source; ours, none has; none, the defaults")
    return notes


def packs(lines: list[planning.Line], words: list[str]) -> list[str]:
    """How the cells to do go together, and why the others run alone; nothing where no pack was asked for."""
    cells = [cell.settings for line in lines for cell in line.cells if cell.state in ("to do", "failed")]
    if any("hydra/launcher=" in word for word in words) or not any(packing.width(cell) > 1 for cell in cells):
        return []
    found = []
    reasons: Counter[str] = Counter()
    for group in packing.packs(cells, lambda cell: cell):
        if len(group) > 1:
            methods = ", ".join(sorted({cell.method.name for cell in group}))
            at_once = min(packing.width(group[0]), len(group))
            found.append(f"pack: {len(group)} cells of {group[0].backbone.name}, {at_once} at once ({methods})")
        else:
            reasons[packing.fit(group[0]).reason or "no other fits with it"] += 1
    return found + [f"alone: {count} cells ({reason})" for reason, count in reasons.items()]


def show(request: Request) -> bool:
    """Print the plan as it stands. Returns whether anything is left to do.

    Raises:
        UserError: bad input.
    """
    profile, reason = choose_profile(request)
    leave_out_absent(request, profile)
    words = sweep_words(sweep_command(request, profile))
    folder = results_dir(request, profile)
    records = load_records(folder)
    cells = planning.settings_of(words)
    speeds = planning.Speeds(records, gpu=profile == "paper" or torch.cuda.is_available())
    planned = planning.plan(cells, records, speeds, leases.held(folder))
    print(f"profile: {profile} ({reason})", f"records: {len(records)} in {folder}", "", sep="\n")
    print(*sheets.markdown(sheet(planned)), "", *remarks(planned, speeds), sep="\n")
    for line in [*packs(planned, words), *staleness.stale(cells, records, staleness.Fingerprints())]:
        print(line)
    for obstacle in planning.obstacles(cells, gpu=profile == "paper"):
        print(f"cannot start here: {obstacle}")
    return any(cell.state != "done" for line in planned for cell in line.cells)


def main(arguments: list[str]) -> int:
    """Print the plan, once or again and again. Exit code 2 on bad input."""
    every = next((word.partition("=")[2] for word in arguments if word.startswith("watch=")), "")
    try:
        if every and not (every.isdigit() and int(every) > 0):
            raise UserError(f"watch={every}: give whole seconds, as in watch=10")
        request = parse([word for word in [*configs.take(arguments), *configs.flag()] if not word.startswith("watch=")])
        while show(request) and every:
            time.sleep(int(every))
            print(f"\n{time.strftime('%H:%M:%S')}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
