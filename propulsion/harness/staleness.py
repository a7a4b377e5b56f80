"""Records that are no longer those of a cell, and what changed since: the code, the task, the recipe or the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.record import HARNESS_VERSION, cell_key, decisive, harness_version
from propulsion.harness.settings import Settings
from propulsion.harness.sources import open_source

Record = dict[str, Any]
Name = tuple[str, str, str, int]
MOST_NAMED = 4  # differences named of one record


class Fingerprints:
    """The data's fingerprint now, for each task and source; None for the hub's, which only a network could tell."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def of(self, settings: Settings) -> str | None:
        """The fingerprint of a cell's rows, or None where it cannot be had here."""
        name = f"{settings.task.name} {settings.data}"
        if name not in self._known:
            self._known[name] = None
            if settings.data.source != "hub":
                with contextlib.suppress(UserError):  # make plan says so among the obstacles
                    self._known[name] = open_source(settings.task, settings.data).fingerprint()
        return self._known[name]

    def fits(self, settings: Settings, fingerprint: str) -> bool:
        """Whether rows with this fingerprint are, as far as can be told, those of today."""
        return self.of(settings) in (None, fingerprint)


def name_of(settings: Settings) -> Name:
    """What people call the cell."""
    return settings.task.name, settings.backbone.name, settings.method.name, settings.seed


def stale(cells: Iterable[Settings], records: list[Record], fingerprints: Fingerprints) -> list[str]:
    """One line for each cell that has no record but one of its name: the nearest one's key and how it differs.

    A record that is another planned cell's, as in a sweep over learning rates, is not stale.
    """
    by_name: dict[Name, list[Record]] = {}
    for record in records:
        run = record["run"]
        by_name.setdefault((run["task"], run["backbone"], run["method"], run["seed"]), []).append(record)
    cells = [cell for cell in cells if name_of(cell) in by_name]
    matched = {r["key"]: cell for cell in cells for r in by_name[name_of(cell)] if is_of(cell, r, fingerprints)}
    done = {id(cell) for cell in matched.values()}
    lines = []
    for cell in cells:
        others = [record for record in by_name[name_of(cell)] if record["key"] not in matched]
        if id(cell) not in done and others:
            found = [(differences(cell, record, fingerprints), str(record["key"])) for record in others]
            changed, key = min(found, key=lambda pair: (len(pair[0]), pair[1]))
            more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
            lines.append(f"{cell.cell}: {key} is stale: {', '.join(changed[:MOST_NAMED])}{more}")
    return lines


def is_of(settings: Settings, record: Record, fingerprints: Fingerprints) -> bool:
    """Whether the runner would find this record for the cell."""
    fingerprint = record["run"]["data"]["fingerprint"]
    return cell_key(settings.config, fingerprint) == record["key"] and fingerprints.fits(settings, fingerprint)


def differences(settings: Settings, record: Record, fingerprints: Fingerprints) -> list[str]:
    """What decides the scores and is not as it was when the record was made, `task.version 1 -> 2`."""
    run = record["run"]
    found = []
    made_by, needed = run.get("harness", HARNESS_VERSION), harness_version(settings.config)
    if made_by != needed:
        found.append(f"code version {made_by} -> {needed}")
    if not fingerprints.fits(settings, run["data"]["fingerprint"]):
        found.append("the data changed")
    before, after = flat(decisive(run)), flat(decisive({"config": settings.config}))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            found.append(f"{key} {_short(before.get(key))} -> {_short(after.get(key))}")
    return found or ["an older version of the code"]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted paths, `training.epochs`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 24 else f"{text[:23]}…"
