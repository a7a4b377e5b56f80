"""Records from disk. What cannot be read whole is named and left out; what cannot be compared is refused."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import marshal
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.record import DIVERGED, FAILED, SCHEMA, SUCCESS, is_intact

Record = dict[str, Any]
logger = logging.getLogger(__name__)

NUMBER = (int, float)
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "key": str,
    "run": dict,
    **dict.fromkeys(("run.task", "run.suite", "run.backbone", "run.method", "run.profile"), str),
    **dict.fromkeys(("run.task_version", "run.seed"), int),
    **dict.fromkeys(("run.config", "run.data", "params", "eval", "cost", "env"), dict),
}
OPTIONAL: dict[str, type | tuple[type, ...]] = {  # null, or of this type
    "run.harness": int,
    "run.weights": dict,
    **{f"run.weights.{name}": str for name in ("id", "revision", "sha256")},
    "run.start": dict,
    "run.start.sha256": str,
    "run.config.training.start_from": str,
    **{f"run.config.{group}": dict for group in ("task", "backbone", "method", "data", "training", "recipe")},
    "run.config.task.labels": list,
    "run.config.task.parts": dict,
    "run.config.task.primary": str,
    **{f"run.config.training.{name}": int for name in ("max_steps", "batch_size", "accumulation")},
    "env.device_count": int,
    "eval.primary": str,
    **{f"eval.{rule}": dict for rule in ("last", "heldout", "best")},
    **{f"params.{name}": int for name in ("adapter", "head", "trainable", "total")},
    **{f"cost.{name}": NUMBER for name in ("train_seconds", "eval_seconds", "steps", "samples_per_second")},
    **{f"cost.{name}": NUMBER for name in ("tokens_per_second", "peak_memory_bytes", "adapter_bytes")},
    **{f"cost.{name}": int for name in ("micro_batch", "oom_retries", "packed_with")},
    "cost.fast_path": str,
}
SHARED = (  # parts that most records of a set have in common, and the more so the longer they are
    *(f"run.config.{group}" for group in ("task", "backbone", "method", "data", "training", "tracking", "recipe")),
    *("run.data", "run.weights", "params", "env"),
)


@dataclass(frozen=True)
class Reading:
    """All records of a results folder, and one line for each file that is not among them."""

    records: list[Record]
    left_out: list[str]  # `runs/rte/minilm/lora/0a.json: not JSON`


def read(results_dir: str | Path) -> Reading:
    """Read `<results_dir>/runs/<task>/<backbone>/<method>/<key>.json`, in the order of the paths.

    Parts that are alike (`SHARED`) are one object in all records that have them: not to be changed.
    """
    with _uncollected():
        return _read(results_dir)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic collector: records are trees, and searching thousands of them again and again costs more
    time than reading them. What is there at the end is exempt from later searches too."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _read(results_dir: str | Path) -> Reading:
    records, left_out, known = [], [], dict[bytes, Any]()
    for path in sorted(Path(results_dir, "runs").glob("*/*/*/[!.]*.json")):
        name = path.relative_to(results_dir).as_posix()
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            left_out.append(f"{name}: cannot be read as JSON")
            continue
        if (reason := problem(record)) is not None:
            left_out.append(f"{name}: {reason}")
        elif name != record_name(record):
            left_out.append(f"{name}: holds the record of {record_name(record)}")
        elif not is_intact(record):
            left_out.append(f"{name}: edited by hand or damaged, its digest is not that of its content")
        else:
            _share(record, known)
            records.append(record)
    return Reading(records, left_out)


def _share(record: Record, known: dict[bytes, Any]) -> None:
    """Put the known equal of each part in its place."""
    for path in SHARED:
        place, _, name = path.rpartition(".")
        node = at(record, place) if place else record
        if isinstance(node, dict) and isinstance(node.get(name), dict):
            node[name] = known.setdefault(marshal.dumps(node[name], 2), node[name])


def load_records(results_dir: str | Path) -> list[Record]:
    """The records of a results folder; each file left out is a warning in the log."""
    reading = read(results_dir)
    for line in reading.left_out:
        logger.warning("left out: %s", line)
    return reading.records


def record_name(record: Record) -> str:
    """Where a record belongs, below its results folder."""
    run = record["run"]
    return f"runs/{run['task']}/{run['backbone']}/{run['method']}/{record['key']}.json"


def problem(record: Any) -> str | None:
    """Why this is no record that a table can use, or None."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return f"not a record of schema {SCHEMA}"
    if record.get("status") not in (SUCCESS, FAILED, DIVERGED):
        return "no valid status"
    for path, kind in REQUIRED.items():
        if not _is(at(record, path), kind):
            return f"{path} is missing or of the wrong type"
    for path, kind in OPTIONAL.items():
        if not (at(record, path) is None or _is(at(record, path), kind)):
            return f"{path} is of the wrong type"
    for rule in ("last", "heldout", "best"):
        if not all(_is(score, NUMBER) for score in (record["eval"].get(rule) or {}).values()):
            return f"eval.{rule} holds a score that is not a finite number"
    return None


def check_comparable(records: list[Record]) -> None:
    """Refuse to put side by side what was not measured on the same thing.

    Raises:
        UserError: two profiles; or, for a task, two versions, data sets, row counts or subsets; or, for a
            backbone, two sets of weights; or one cell and seed twice. The line names two of the records.
    """
    _same(records, "suite", {"profile": "run.profile"})
    _same(records, "task", COMPARED_PER_TASK)
    _same(records, "backbone", COMPARED_PER_BACKBONE)
    _same([r for r in records if not at(r, "run.weights.sha256")], "backbone", COMPARED_WITHOUT_DIGEST)


COMPARED_PER_TASK = {
    "task version": "run.task_version",
    "data source": "run.data.source",
    "data fingerprint": "run.data.fingerprint",
    "training rows": "run.data.train_rows",
    "evaluation rows": "run.data.eval_rows",
    "official": "run.data.official",
    "data.seed": "run.config.data.seed",
    "data.holdout_rows": "run.config.data.holdout_rows",
    "primary metric": "eval.primary",
}
COMPARED_PER_BACKBONE = {
    "weights": "run.config.backbone.weights",
    "sha256": "run.weights.sha256",
}
COMPARED_WITHOUT_DIGEST = {  # one file may well come from a package here and from the hub there
    "weights id": "run.weights.id",
    "weights revision": "run.weights.revision",
}


def _same(records: list[Record], kind: str, compared: dict[str, str]) -> None:
    """Every group has one value of each compared thing; None (a run that failed early) agrees with all."""
    first: dict[tuple[str, str], tuple[Any, Record]] = {}
    for record in records:
        group = record["run"][kind]
        for what, path in compared.items():
            value = at(record, path)
            if value is None:
                continue
            known, other = first.setdefault((group, what), (value, record))
            if value != known:
                raise UserError(
                    f"{kind} {_short(group)}: {what} {_short(known)} ({record_name(other)}) and "
                    f"{_short(value)} ({record_name(record)}) cannot share a table: move one kind out of "
                    "runs/, or run each with its own results_dir"
                )


def at(record: Record, path: str) -> Any:
    """What stands at a dotted path of a record, as in `run.data.source`; None where nothing does."""
    node: Any = record
    for name in _names(path):
        if not isinstance(node, dict):
            return None
        node = node.get(name)
    return node


@functools.cache
def _names(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:40]}…"


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Of that type; a number must be finite, and true and false are none."""
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, float) or math.isfinite(value)
