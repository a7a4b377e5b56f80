"""Kernel records on disk: `<results_dir>/kernels/<task>/<backbone>/<seed>.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.files import write_text
from propulsion.harness.record import finite, is_intact, sealed

SCHEMA = 1
Record = dict[str, Any]


def path_of(results_dir: str | Path, task: str, backbone: str, seed: int) -> Path:
    """Where a kernel record lies."""
    return Path(results_dir, "kernels", task, backbone, f"{seed}.json")


def write(results_dir: str | Path, entry: Record) -> Path:
    """Write a record with its digest, whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    run = entry["run"]
    path = path_of(results_dir, run["task"], run["backbone"], run["seed"])
    try:
        write_text(path, json.dumps(sealed(finite(entry)), ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); set results_dir=<a folder that can>") from error
    return path


def read(results_dir: str | Path) -> list[Record]:
    """The kernel records of a results folder, in the order of their paths; what is damaged is left out."""
    found = []
    for path in sorted(Path(results_dir, "kernels").glob("*/*/*.json")):
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
