"""Kernel records on disk: `<results_dir>/kernels/<task>/<backbone>/<seed>.json`.

A results folder holds one kind for each task and backbone: what was measured is never replaced, and seeds under unlike
conditions are never averaged.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.files import write_text
from propulsion.harness.record import decisive, finite, is_intact, sealed, set_aside
from propulsion.harness.staleness import flat

SCHEMA = 1
MOST_NAMED = 4  # differing conditions named in a line
Record = dict[str, Any]


def path_of(results_dir: str | Path, task: str, backbone: str, seed: int) -> Path:
    """Where a kernel record lies."""
    return Path(results_dir, "kernels", task, backbone, f"{seed}.json")


def write(results_dir: str | Path, entry: Record) -> Path:
    """Write a record with its digest, whole or not at all. Nothing is written over: see `is_there`.

    Raises:
        UserError: the folder cannot be written.
    """
    path = _place(results_dir, entry["run"])
    try:
        if path.is_file():
            print(f"{path} is no whole record; set aside as {set_aside(path).name}", file=sys.stderr)
        write_text(path, json.dumps(sealed(finite(entry)), ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); set results_dir=<a folder that can>") from error
    return path


def _place(results_dir: str | Path, run: Record) -> Path:
    return path_of(results_dir, run["task"], run["backbone"], run["seed"])


def is_there(results_dir: str | Path, run: Record, identity: str, what: str) -> bool:
    """Whether the kernels of a task, backbone and seed were measured before.

    Args:
        results_dir: where to look.
        run: `task`, `backbone`, `seed`, `config` and `data`, as the record would have them.
        identity: of all that they are of.
        what: that in words.

    Raises:
        UserError: the folder has kernels of this task and backbone under other conditions, with which these could share
            no table; or, in their place, those of other methods.
    """
    found = False
    for entry in read(results_dir, run["task"], run["backbone"]):
        place = _place(results_dir, entry["run"])
        differing = _differing(settings_of(entry["run"]), settings_of(run))
        if differing:
            raise UserError(
                f"{place} was measured under other conditions ({differing}), and unlike kernels cannot share a table: "
                "set results_dir=<a folder for each kind>"
            )
        if entry["run"]["seed"] == run["seed"]:
            if entry.get("identity") != identity:
                raise UserError(
                    f"{place} has the kernels of {described(entry)}, not of {what} as they are set now, and nothing "
                    "measured is replaced: set results_dir=<another folder>, or move the file away"
                )
            found = True
    return found


def described(entry: Record) -> str:
    """`full, head, lora with trained=no`: what was asked for."""
    subjects = entry["subjects"]
    return words(list(subjects), any("trained" in subject for subject in subjects.values()))


def words(labels: Sequence[str], trained: bool) -> str:
    """The words of `described`."""
    return f"{', '.join(labels)} with trained={'yes' if trained else 'no'}"


def settings_of(run: Record) -> Record:
    """What decides kernels and is known before they are measured, but for the seed: by name."""
    settings = {key: value for key, value in decisive(run).items() if key != "seed"}
    return {**flat(settings), "fingerprint": run["data"].get("fingerprint"), "source": run["data"].get("source")}


def conditions(entry: Record) -> Record:
    """All that decides kernels but the seed and the methods, by name."""
    weights, rows = entry["run"]["weights"] or {}, entry["rows"]
    return {
        **settings_of(entry["run"]),
        "training rows": rows["train"],
        "evaluation rows": rows["eval"],
        "weights": weights.get("sha256") or [weights.get("id"), weights.get("revision")],
    }


def _differing(one: Record, other: Record) -> str:
    """The names that do not agree; '' where all do."""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*names[:MOST_NAMED], *more])


def check_alike(entries: Sequence[Record]) -> None:
    """Refuse a table of kernels, of one task and backbone, that are not seeds of the same thing.

    Raises:
        UserError: two of them differ in more than their seed, or have the same one.
    """
    seen: dict[int, Record] = {}
    for entry in entries:
        run, first = entry["run"], entries[0]
        differing = _differing(conditions(first), conditions(entry))
        twice = f"seed {run['seed']} twice" if run["seed"] in seen else ""
        if differing or twice:
            unlike = f"seeds {first['run']['seed']} and {run['seed']} under unlike conditions ({differing})"
            raise UserError(
                f"kernels of {run['task']}, {run['backbone']}: {twice or unlike}, which cannot share a table: move one "
                "kind out of kernels/, or measure each with its own results_dir"
            )
        seen[run["seed"]] = entry


def seeds_of(entries: Sequence[Record], label: str) -> tuple[list[Record], int]:
    """Of a task's and backbone's records, of any result sets, one for each seed, and how many others there are.

    Kernels under other conditions are no seeds of the same thing: the conditions with most seeds are taken, by the
    order of their text where that is a tie, whatever the kernels are like.

    Args:
        entries: each with the subject.
        label: of the subject.
    """
    groups: dict[str, dict[int, Record]] = defaultdict(dict)
    for entry in entries:
        subject = entry["subjects"][label]
        alike = [conditions(entry), subject.get("degree"), subject.get("counts")]
        groups[json.dumps(alike, sort_keys=True)].setdefault(entry["run"]["seed"], entry)
    if not groups:
        return [], 0
    chosen = min(groups, key=lambda text: (-len(groups[text]), text))
    own = [groups[chosen][seed] for seed in sorted(groups[chosen])]
    return own, sum(map(len, groups.values())) - len(own)


def read(results_dir: str | Path, task: str = "*", backbone: str = "*") -> list[Record]:
    """The kernel records of a results folder, in the order of their paths; what is damaged is left out."""
    found = []
    for path in sorted(Path(results_dir, "kernels").glob(f"{task}/{backbone}/*.json")):
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(entry, dict) and entry.get("schema") == SCHEMA and is_intact(entry):
            found.append(entry)
    return found


def read_all(results: Path) -> list[Record]:
    """The kernel records of every result set."""
    return [entry for folder in sorted(results.glob("*/kernels")) for entry in read(folder.parent)]


def by_task(entries: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """(backbone, task) -> its records by seed."""
    found: dict[tuple[str, str], list[Record]] = {}
    for entry in sorted(entries, key=lambda e: (e["run"]["backbone"], e["run"]["task"], e["run"]["seed"])):
        found.setdefault((entry["run"]["backbone"], entry["run"]["task"]), []).append(entry)
    return found
