"""The ablations: run their grids, write their tables and figures. For `make ablations`.

    python -m scripts.ablations tasks=sst2 seeds=0
    python -m scripts.ablations grids=degree,degree_rate,position tasks=sst2,stsb seeds=0,1,2 data_dir=<folder>
    python -m scripts.ablations report=only results_dir=results/ablations-real

Grids are `conf/experiment/ablation_<grid>.yaml`. Whatever else stands on the line goes to every sweep as an override.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, field

from propulsion.harness import configs, planning, sheets
from propulsion.harness.ablations.report import write_report
from propulsion.harness.errors import UserError, ended, unknown
from propulsion.harness.progress import duration
from propulsion.harness.record import REPOSITORY, check_writable
from scripts.reproduce import INTERRUPTED, run_sweep

PREFIX = "ablation_"
GRIDS = ("degree", "degree_rate", "position", "vectors", "init", "head", "decay", "convergence")
REPORTS = ("after", "only")


@dataclass
class Request:
    """What was typed. Lists are comma-separated."""

    grids: str = ",".join(GRIDS)
    tasks: str = "sst2"
    backbones: str = "minilm"
    seeds: str = "0"
    data_dir: str = ""
    results_dir: str = ""
    report: str = "after"  # only: run nothing
    overrides: list[str] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """The asked results folder; real data have their own, since the two never share a table."""
        return self.results_dir or ("results/ablations-local" if self.data_dir else "results/ablations")


def parse(arguments: list[str]) -> Request:
    """Split `key=value` words into the request's own keys and Hydra overrides.

    Raises:
        UserError: an unknown grid, or another word for `report`.
    """
    request = Request()
    for word in arguments:
        key, found, value = word.partition("=")
        if found and value and key != "overrides" and key in Request.__dataclass_fields__:
            setattr(request, key, value)
        else:
            request.overrides.append(word)
    for grid in request.grids.split(","):
        if not (REPOSITORY / "conf" / "experiment" / f"{PREFIX}{grid}.yaml").is_file():
            raise unknown("grid", grid, GRIDS)
    if request.report not in REPORTS:
        raise unknown("report", request.report, REPORTS)
    return request


def sweeps(request: Request) -> list[list[str]]:
    """The base cell, which every ablation is beside, and each grid: command lines that a person could type."""
    grids = request.grids.split(",")
    names = [*(["ablation"] if grids != ["convergence"] else []), *(f"{PREFIX}{grid}" for grid in grids)]
    return [[sys.executable, "-m", "scripts.run", "-m", f"experiment={name}", *words(request)] for name in names]


def words(request: Request) -> list[str]:
    """What all sweeps share."""
    found = [f"task={request.tasks}", f"backbone={request.backbones}", f"seed={request.seeds}"]
    found += ["data=local", f"data.dir={request.data_dir}"] if request.data_dir else []
    return [*found, f"results_dir={request.folder}", *request.overrides]


def main(arguments: list[str]) -> int:
    """Run the sweeps and write the report of what is there. Exit codes as scripts.run, the first that is not 0."""
    started = time.monotonic()
    code = 0
    try:
        request = parse([*configs.take(arguments), *configs.flag()])
        if request.report == "after":
            cells = planning.settings_of(["experiment=ablation", *words(request)])  # names are checked before any run
            missing = planning.obstacles(cells, gpu=False)
            if missing:
                raise UserError(f"the ablations cannot start: {missing[0]}")
            check_writable(request.folder)
            for command in sweeps(request):
                print(f"sweep:   {shlex.join(['python', *command[1:]])}", flush=True)
                code = run_sweep(command) or code
                if code == INTERRUPTED:
                    return code
        made, paths = write_report(request.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for one in made:
        print("", one.title, one.legend, "", *sheets.markdown(one), sep="\n")
    print("\nwritten:", *paths)
    print(f"took {duration(time.monotonic() - started)}")
    return code


if __name__ == "__main__":
    sys.exit(ended(main))
