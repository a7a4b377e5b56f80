"""Which finished runs answer for a submission: one backbone, one method, one seed, one run per task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from propulsion.harness.errors import UserError, unknown
from propulsion.harness.kept import RULES
from propulsion.harness.record import SUCCESS
from propulsion.harness.submission.formats import SUITES, Target
from propulsion.harness.tables.reading import load_records, record_name

Record = dict[str, Any]
FILLS = ("", "majority")


@dataclass
class Request:
    """What was typed. Empty: whatever there is, if that is one thing only."""

    results_dir: str = ""
    data_dir: str = ""
    suite: str = ""
    tasks: str = ""
    backbone: str = ""
    method: str = ""
    seed: str = ""
    keys: str = ""
    rule: str = "last"
    fill: str = ""

    def check(self) -> None:
        """Refuse words that mean nothing.

        Raises:
            UserError: an unknown suite, rule, fill or task.
        """
        if self.suite and self.suite not in SUITES:
            raise unknown("suite", self.suite, SUITES)
        if self.rule not in RULES:
            raise UserError(f"rule={self.rule}: weights are kept of {' and '.join(RULES)}; type rule=last or rule=best")
        if self.fill not in FILLS:
            raise unknown("fill", self.fill, FILLS[1:])
        known = {target.task for suite in SUITES.values() for target in suite.targets}
        for task in names(self.tasks):
            if task not in known:
                raise unknown("task", task, known)


def names(text: str) -> list[str]:
    """The names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def wanted(request: Request, suite: str) -> list[Target]:
    """The suite's files that the request is about."""
    tasks = names(request.tasks)
    return [target for target in SUITES[suite].targets if not tasks or {target.task, target.model} & set(tasks)]


def choose(request: Request) -> dict[str, Record]:
    """Task -> the one successful record that answers for it.

    Raises:
        UserError: nothing to choose from, or more than one thing; the line names what can be typed.
    """
    folder = request.results_dir
    found = [record for record in load_records(folder) if record["status"] == SUCCESS]
    if not found:
        raise UserError(f"{folder} has no finished runs: run some, or type results_dir=results/<name>")
    tasks = {
        target.model for suite in ([request.suite] if request.suite else SUITES) for target in wanted(request, suite)
    }
    found = _keyed([record for record in found if record["run"]["task"] in tasks], names(request.keys))
    if not found:
        raise UserError(
            f"{folder} has no finished run of {request.tasks or request.suite}: run it, or name other tasks"
        )
    found = _only(found, "backbone", request.backbone, folder)
    found = _only(found, "method", request.method, folder)
    found = _only(found, "seed", request.seed, folder)
    _one_backbone(found)
    return {task: _one(task, own) for task, own in _by_task(found).items()}


def suites_of(request: Request, chosen: dict[str, Record]) -> list[str]:
    """The suite asked for, or those with a task of their own that has a run or is named.

    A task of two suites, as RTE is, counts where it stands alone.
    """
    if request.suite:
        return [request.suite]
    there = set(chosen) | set(names(request.tasks))
    tasks = {suite: {target.model for target in wanted(request, suite)} & there for suite in SUITES}
    shared = set.intersection(*tasks.values())
    own = [suite for suite in SUITES if tasks[suite] - shared]
    return own or [suite for suite in SUITES if any(record["run"]["suite"] == suite for record in chosen.values())]


def _keyed(records: list[Record], keys: list[str]) -> list[Record]:
    """Of each task the record that a key names, or all where none does."""
    known = {record["key"] for record in records}
    for key in keys:
        if key not in known:
            raise unknown("key", key, known)
    settled = {record["run"]["task"] for record in records if record["key"] in keys}
    return [record for record in records if record["key"] in keys or record["run"]["task"] not in settled]


def _only(records: list[Record], what: str, asked: str, folder: str) -> list[Record]:
    """The records of the asked backbone, method or seed, or of the only one there is."""
    present = sorted(
        {str(record["run"][what]) for record in records}, key=lambda v: (len(v), v) if what == "seed" else v
    )
    chosen = names(asked) or present
    for name in chosen:
        if name not in present:
            raise UserError(
                f"{folder} has no finished run of {what} {name} for these tasks: {what}={'|'.join(present)}"
            )
    if len(chosen) > 1:
        raise UserError(
            f"a submission is of one {what}, and {folder} has runs of {', '.join(chosen)}: "
            f"add {what}={'|'.join(chosen)} (make: {what.upper()}S=<one of them>)"
        )
    return [record for record in records if str(record["run"][what]) == chosen[0]]


def _one_backbone(records: Iterable[Record]) -> None:
    """Refuse two sets of weights under one backbone's name."""
    first: dict[str, Record] = {}
    for record in records:
        weights = record["run"]["weights"] or {}
        first.setdefault(str(weights.get("sha256") or (weights.get("id"), weights.get("revision"))), record)
    if len(first) > 1:
        one, other = (record_name(record) for record in list(first.values())[:2])
        raise UserError(
            f"mixed backbones: {one} and {other} are of two sets of weights: choose the runs of one with "
            "keys=<key>,<key>, or move the others out of runs/"
        )


def _by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["run"]["task"], []).append(record)
    return found


def _one(task: str, records: list[Record]) -> Record:
    if len(records) > 1:
        present = [record["key"] for record in records]
        raise UserError(
            f"task {task} has {len(records)} runs of this method and seed with other settings: "
            f"choose one with keys={'|'.join(present)}"
        )
    return records[0]
