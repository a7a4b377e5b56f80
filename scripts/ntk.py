"""Tangent kernels of the methods against full fine-tuning's, with controls of the same count. For `make ntk`.

    python -m scripts.ntk tasks=sst2,rte seeds=0,1,2 data_dir=<folder>
    python -m scripts.ntk methods=full,lora,propulsion degrees= training.max_train_rows=128 trained=no memory=8

Rows: `training.max_train_rows` training and `training.max_eval_rows` evaluation rows. `trained=yes` also trains each
method on these rows, as an ordinary cell, and compares. Kernels that are there are skipped and never replaced: those of
other rows, settings or methods need a results_dir= of their own. Whatever else stands on the line goes to every cell as
a Hydra override. A kernel record waits for the training of all its cells. Exit code: 0 done, 1 a training failed, 2 bad
input, 75 a cell is running elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from propulsion.harness import configs, planning, sheets
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import RunningElsewhere, UserError, ended
from propulsion.harness.ntk import records
from propulsion.harness.ntk.measure import FULL, check_full, measure, run_of
from propulsion.harness.ntk.report import write_report
from propulsion.harness.progress import duration, outcome
from propulsion.harness.record import FAILED, SUCCESS, cell_key, check_writable
from propulsion.harness.settings import Settings
from propulsion.harness.sources import open_source
from scripts.run import TRY_LATER

YES, NO = "yes", "no"


class TrainingFailed(Exception):
    """A cell's training failed, which has been said: a kernel record without it would count as done."""


@dataclass
class Request:
    """What was typed."""

    tasks: str = "sst2,rte,cola,stsb"
    methods: str = "full,head,bitfit,lora,ia3,propulsion,propulsion_attn"
    backbones: str = "minilm"
    seeds: str = "0"
    degrees: str = "1,55"  # of `propulsion`, beside the method's own
    data_dir: str = ""
    results_dir: str = ""
    trained: str = YES
    memory: str = "1"  # GB that a block of Jacobians may take
    overrides: list[str] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """The asked results folder; real data have their own, and neither is a committed one."""
        return self.results_dir or ("results/ntk-local" if self.data_dir else "results/ntk-generated")


def parse(arguments: list[str]) -> Request:
    """Split `key=value` words into the request's own keys and Hydra overrides."""
    request = Request()
    for word in arguments:
        key, found, value = word.partition("=")
        if found and (value or key == "degrees") and key != "overrides" and key in Request.__dataclass_fields__:
            setattr(request, key, value)
        else:
            request.overrides.append(word)
    if request.trained not in (YES, NO):
        raise UserError(f"trained={request.trained}: use yes or no")
    if not request.memory.isdigit() or request.memory == "0":
        raise UserError(f"memory={request.memory}: give whole GB, as in memory=4")
    check_full(request.methods.split(","))
    return request


def cells(request: Request, task: str, backbone: str, seed: str) -> dict[str, Settings]:
    """Label -> settings: the methods, and Propulsion at further degrees."""
    words = ["experiment=ntk", f"task={task}", f"backbone={backbone}", f"seed={seed}"]
    words += ["data=local", f"data.dir={request.data_dir}"] if request.data_dir else []
    words += [f"results_dir={request.folder}", *request.overrides]
    asked = {method: [f"method={method}"] for method in request.methods.split(",")}
    if "propulsion" in asked:
        further = [degree for degree in request.degrees.split(",") if degree]
        asked |= {f"propulsion k={k}": ["method=propulsion", f"method.degree={k}"] for k in further}
    found = {}
    for label, own in asked.items():
        settings = planning.settings_of([*words, *own])
        if len(settings) != 1:
            raise UserError("make ntk sweeps over tasks=, backbones= and seeds= alone: give every other key one value")
        found[label] = settings[0]
    return found


def identity(chosen: dict[str, Settings], trained: bool) -> str:
    """What decides a kernel record: the cells behind it, and whether they were trained."""
    fingerprint = open_source(next(iter(chosen.values())).task, next(iter(chosen.values())).data).fingerprint()
    keys = {label: cell_key(settings.config, fingerprint) for label, settings in chosen.items()}
    return hashlib.sha256(json.dumps([keys, trained], sort_keys=True).encode()).hexdigest()[:16]


def is_there(chosen: dict[str, Settings], trained: bool) -> bool:
    """Whether the kernel record was written before.

    Raises:
        UserError: another one is in its place, or the folder has kernels that cannot share a table with it.
    """
    full, what = chosen[FULL], records.words(list(chosen), trained)
    return records.is_there(full.results_dir, run_of(full), identity(chosen, trained), what)


def kernel_of(chosen: dict[str, Settings], trained: bool, room: int) -> bool:
    """Measure and write one kernel record, unless it is there. Returns whether it ran.

    Raises:
        UserError: as `is_there`.
        RunningElsewhere: another process has one of the cells, which has been said.
        TrainingFailed: as `trained_cells`.
    """
    if is_there(chosen, trained):
        return False
    entry = measure(chosen, trained_cells(chosen) if trained else {}, room)
    if not is_there(chosen, trained):  # another process may have been quicker
        records.write(chosen[FULL].results_dir, {**entry, "identity": identity(chosen, trained)})
    return True


def trained_cells(chosen: dict[str, Settings]) -> dict[str, Any]:
    """Label -> record of the training, but for those that diverged: these would do so again.

    Raises:
        RunningElsewhere: another process has one of the cells, which has been said.
        TrainingFailed: of one cell or more, after the others were trained.
    """
    runs: dict[str, Any] = {}
    for label, settings in chosen.items():
        try:
            entry, _ = run_cell(settings)
        except RunningElsewhere as elsewhere:
            print(f"{settings.cell}: {elsewhere}", flush=True)
            raise
        runs[label] = entry
        if entry["status"] != SUCCESS:
            print(f"{settings.cell}: {outcome(entry)}", flush=True)
    if any(entry["status"] == FAILED for entry in runs.values()):
        raise TrainingFailed
    return {label: entry for label, entry in runs.items() if entry["status"] == SUCCESS}


def main(arguments: list[str]) -> int:
    """Measure what is missing, write the tables and figures. Exit codes as scripts.run."""
    started, failed = time.monotonic(), False
    try:
        request = parse([*configs.take(arguments), *configs.flag()])
        grid = [
            cells(request, task, backbone, seed)
            for backbone in request.backbones.split(",")
            for seed in request.seeds.split(",")
            for task in request.tasks.split(",")
        ]
        for chosen in grid:
            is_there(chosen, request.trained == YES)  # what would be refused is, before anything is measured
        check_writable(request.folder)
        for number, chosen in enumerate(grid, 1):
            first, begun = chosen[FULL], time.monotonic()
            try:
                ran = kernel_of(chosen, request.trained == YES, int(request.memory) * 10**9)
                took = duration(time.monotonic() - begun) if ran else "done before, skipped"
            except TrainingFailed:
                failed, took = True, "not measured, as a training failed"
            what = f"{first.task.name}/{first.backbone.name} seed {first.seed}: {len(chosen)} kernels"
            print(f"[{number}/{len(grid)}] {what}; {took}", flush=True)
        if failed and not records.read(request.folder):
            return 1  # nothing to report on
        made, paths = write_report(request.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunningElsewhere:
        return TRY_LATER
    for one in made:
        print("", one.title, one.legend, "", *sheets.markdown(one), sep="\n")
    print("\nwritten:", *paths)
    print(f"took {duration(time.monotonic() - started)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(ended(main))
