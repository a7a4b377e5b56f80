"""Step 6, record: one JSON file per cell, written whole or not at all; the only source of the tables."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from propulsion.harness.digests import start_digest
from propulsion.harness.errors import UserError
from propulsion.harness.files import try_writing, write_text
from propulsion.harness.settings import Config, Settings

SCHEMA = 1
SUCCESS, FAILED, DIVERGED = "success", "failed", "diverged"
HARNESS_VERSION = 1  # raised, next to 3, when a change of the code, or of a default in settings.py, changes scores
HEEDS_WARMUP = 2  # the version of cells with a constant rate and a warm-up, which earlier code left out
PARALLEL_CELLS = "PROPULSION_PARALLEL_CELLS"  # in the environment: cells of one sweep that share the machine
REPOSITORY = Path(__file__).resolve().parents[2]

# Keys of the config that cannot change a score: where things lie, how they are shown, when they are saved.
IGNORED = {
    "": ("results_dir", "profile", "tracking", "rerun", "sweep"),
    "data": ("dir",),
    "task": ("title", "dev_rows", "also", "max_length", "epochs"),  # the last two: defaults of training's, which count
    "backbone": ("note", "package", "package_folder"),
    "method": ("title", "learning_rate"),  # the default of training.learning_rate, which counts
    "training": (
        *("checkpoint_seconds", "keep_checkpoints", "keep_weights", "start_from"),
        *("lean", "gradient_checkpointing", "fsdp"),  # the same numbers from less memory
    ),
    "recipe": ("sources", "notes"),
}


def cell_key(config: dict[str, Any], fingerprint: str) -> str:
    """The cell's identity, 16 hex digits: a digest of the config and data that decide its scores.

    The task's version and the backbone's digest and revision are part of the config; a file to start from
    counts by its content.
    """
    start = config["training"]["start_from"]  # the file counts, not where it lies
    kept = _decisive(config, start_digest(start) if start else None)
    identity = {"harness": harness_version(config), "config": _without_defaults(kept, _defaults()), "data": fingerprint}
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def harness_version(config: dict[str, Any]) -> int:
    """The version of the code that a cell's scores hang on: `HARNESS_VERSION`, but where a change touched few cells."""
    training = {**_defaults()["training"], **config["training"]}
    steps = training["warmup_steps"]
    warmup = training["warmup_ratio"] if steps is None else steps
    warmed = training["schedule"] == "constant" and warmup > 0
    return max(HARNESS_VERSION, HEEDS_WARMUP) if warmed else HARNESS_VERSION


def decisive(run: dict[str, Any]) -> dict[str, Any]:
    """What decides a recorded run's scores, its seed included: the config as it counts, and `start`.

    Args:
        run: the `run` part of a record. A setting that is newer than the record has its default.

    Returns:
        The config without what `IGNORED` lists. `start` is the digest of the file that the run started from, the
        file's name where the run ended before it was read, or None for a fresh run.
    """
    config: dict[str, Any] = run["config"]
    filled = dict(config)
    for group, defaults in _defaults().items():
        if isinstance(defaults, dict) and isinstance(config.get(group), dict):
            filled[group] = {**{key: v for key, v in defaults.items() if v != MISSING}, **config[group]}
    return _decisive(filled, start_of(run))


def start_of(run: dict[str, Any]) -> str | None:
    """The `start` of `decisive` alone."""
    known, start = run.get("start"), (run["config"].get("training") or {}).get("start_from")
    return (known.get("sha256") or start) if isinstance(known, dict) else start


def _decisive(config: dict[str, Any], start: str | None) -> dict[str, Any]:
    """The one rule of what makes a run another run: for the cell's key, the tables and the claims."""
    kept = {key: value for key, value in config.items() if key not in IGNORED[""]}
    for group, keys in IGNORED.items():
        if group and kept.get(group):
            kept[group] = {key: value for key, value in kept[group].items() if key not in keys}
    return {**kept, "start": start}


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The config as it is recorded: of folders and files on this machine, only their last name.

    But of a backbone's own folder, without which the run could not be opened again: see `public`.
    """
    training = {**config["training"], "start_from": _last_name(config["training"]["start_from"])}
    data = {**config["data"], "dir": _last_name(config["data"]["dir"])}
    return {**config, "training": training, "data": data, "results_dir": _last_name(config["results_dir"])}


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A recorded config as it leaves this machine: its backbone's own folder too by its last name alone."""
    backbone = config["backbone"]
    own = Path(backbone["id"]).expanduser().is_dir() or str(backbone["id"])[:1] in "/~."
    return {**config, "backbone": {**backbone, "id": _last_name(backbone["id"])}} if own else config


def _last_name(path: str | None) -> str | None:
    return Path(path).name if path else path


@functools.cache
def _defaults() -> dict[str, Any]:
    """The schema's own values. Left out of a key, so that a new setting leaves the keys of old records alone."""
    defaults: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(Config))  # type: ignore[assignment]
    return {**defaults, "start": None}


def _without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key, MISSING)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _without_defaults(value, default)
            if value:
                kept[key] = value
        elif value != default:
            kept[key] = value
    return kept


def record_path(settings: Settings, key: str) -> Path:
    """`<results_dir>/runs/<task>/<backbone>/<method>/<key>.json`."""
    cell = Path(settings.task.name, settings.backbone.name, settings.method.name)
    return Path(settings.results_dir, "runs", cell, f"{key}.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """A finished or failed record, or None where there is none that can be read whole."""
    return look(path)[0]


def look(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The record at a path, or why what lies there is none; (None, None) where nothing does.

    Raises:
        UserError: the file is there and the system does not let it be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend it, or set results_dir=<folder>") from error
    except (ValueError, RecursionError):
        return None, "not whole"
    if not isinstance(record, dict) or record.get("status") not in (SUCCESS, FAILED, DIVERGED):
        return None, "not a record"
    if record.get("key") != path.stem:
        return None, "the record of another cell"
    if not is_intact(record):
        return None, "edited by hand or damaged: its digest is not that of its content"
    return record, None


def set_aside(path: Path) -> Path:
    """Rename a file that is no record to the first free `<name>.broken-<n>`; nothing is overwritten or deleted."""
    number = 1
    while (target := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    os.rename(path, target)  # only the holder of the cell's lease does this
    return target


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote this record."""
    for leftover in path.parent.glob(f".{path.stem}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record with its digest, whole or not at all."""
    write_text(path, json.dumps(sealed(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the digest of all the rest of it."""
    content: dict[str, Any] = json.loads(json.dumps(record))  # as a reader will find it
    return {**record, "digest": _content_digest(content)}


def is_intact(record: dict[str, Any]) -> bool:
    """Whether the digest of a record as it was read is that of its content.

    Records from before there were digests are taken as they are.
    """
    return "digest" not in record or record["digest"] == _content_digest(record)


def _content_digest(record: dict[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_writable(results_dir: str) -> None:
    """Refuse a results folder that cannot be written, before any work; leaves nothing behind.

    Raises:
        UserError: it, or the nearest folder above it that exists, does not take a file.
    """
    try:
        try_writing(Path(results_dir))
    except OSError as error:
        raise UserError(
            f"results folder {results_dir} cannot be written ({error.strerror}); set results_dir=<a folder that can>"
        ) from error


def finite(value: Any) -> Any:
    """The value with every number that JSON cannot hold (nan, inf) as null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def error_entry(error: BaseException) -> dict[str, str]:
    """Type, message and place of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown"
    return {"type": type(error).__name__, "message": str(error)[:2000], "where": where}


def environment(precision: str | None) -> dict[str, Any]:
    """Versions, commit and device. Names no host, user or path."""
    import torch  # here: what is done is found without it

    from propulsion.harness.devices import device_name

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "datasets")}
    commit, dirty = _git_state()
    return {
        "python": platform.python_version(),
        **versions,
        "commit": commit,
        "dirty": dirty,
        "device": device_name(),
        "device_count": int(os.environ.get("WORLD_SIZE", "1")),
        "parallel_cells": int(os.environ.get(PARALLEL_CELLS, "1")),  # above 1: time and memory do not compare
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "precision": precision,
    }


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the code and whether it was changed since; (None, None) outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        # Results and notes do not change what runs.
        changed = _git("status", "--porcelain", "--", "conf", "propulsion", "baselines", "scripts")
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changed)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
