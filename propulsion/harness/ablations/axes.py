"""Which settings each ablation varies, and which records belong to it.

A record belongs to an ablation when, of all settings that any ablation varies, those that this one does not vary are
the base cell's. Of a task's runs under several conditions (steps, schedule) those with most levels are taken, whatever
they score, and the others are counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from propulsion.harness.errors import UserError
from propulsion.harness.record import decisive
from propulsion.harness.tables.reading import Record, at, record_name

METHOD = "propulsion"
# What the ablations vary, each with the base cell's value; the learning rate's is the method's own default.
BASE: dict[str, Any] = {
    "method.degree": 15,
    "method.peft.target_modules": "all",
    "method.num_vectors": 1,
    "method.pooling": "avg",
    "method.init_spread": 0.0,
    "method.head": "trained",
    "training.weight_decay": 0.0,
    "training.decay_vectors": False,
}
RATE = "training.learning_rate"
POSITIONS = ("embeddings", "mlp", "key", "query", "value", "attention", "all")
HEADS = ("trained", "frozen", "wrapped")
POOLINGS = ("avg", "max", "min", "l2")

Level = tuple[Any, ...]


@dataclass(frozen=True)
class Axis:
    """One ablation: `keys` may differ from the base; `level` is what a row stands for, None for a record outside."""

    name: str
    title: str
    what: str  # of the first column
    keys: tuple[str, ...]
    level: Callable[[Record], Level | None]
    label: Callable[[Level], str]
    note: str = ""


def setting(record: Record, key: str) -> Any:
    """A setting of a run; where the record is older than the setting, or leaves it out, the base's value.

    A list is its parts in a line, `query, key`: levels are keys of dictionaries, and are printed.
    """
    value = at(record, f"run.config.{key}")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return BASE.get(key) if value is None else value


def _one(key: str) -> Callable[[Record], Level]:
    return lambda record: (setting(record, key),)


def _rate(record: Record) -> tuple[float, float]:
    return float(at(record, f"run.config.{RATE}") or 0), float(at(record, "run.config.method.learning_rate") or 0)


def _at_rate(record: Record) -> Level | None:
    rate, base = _rate(record)
    return (setting(record, "method.degree"),) if rate == base else None


def _at_product(record: Record) -> Level | None:
    rate, base = _rate(record)
    degree = setting(record, "method.degree")
    return (degree,) if abs(rate * degree / (base * BASE["method.degree"]) - 1) < 1e-3 else None


def _vectors(record: Record) -> Level:
    number, spread = setting(record, "method.num_vectors"), setting(record, "method.init_spread")
    return spread, number, setting(record, "method.pooling")


def _vectors_label(level: Level) -> str:
    spread, number, pooling = level
    start = f"drawn, sd {spread:g}" if spread else "all at 1"
    return f"1 ({start})" if number == 1 else f"{number}, {pooling} ({start})"


def _decay_label(level: Level) -> str:
    decay, on_vectors = level
    return f"{decay:g}, {'z as well' if on_vectors else 'head matrix alone'}" if decay else "none"


AXES = (
    Axis(
        "degree", "Degree at one learning rate", "degree k", ("method.degree",),
        _at_rate, lambda level: f"{level[0]}",
        "Under Adam a step moves z^k by about k x learning rate, so that here the steps grow with the degree.",
    ),
    Axis(
        "degree-rate", "Degree at one product of degree and learning rate", "degree k", ("method.degree", RATE),
        _at_product, lambda level: f"{level[0]}",
        "Learning rate = (base rate x base degree) / k: the steps of z^k are about alike.",
    ),
    Axis(
        "position", "Position of z", "layers with a z", ("method.peft.target_modules",),
        _one("method.peft.target_modules"), lambda level: f"{level[0]}",
        "The learning rate is the same for all; fewer scaled layers may want a larger one.",
    ),
    Axis(
        "vectors", "Several vectors a layer", "vectors", ("method.num_vectors", "method.pooling", "method.init_spread"),
        lambda r: _vectors(r) if _vectors(r)[0] in (0.0, 0.01) else None, _vectors_label,
        "Vectors that all start at 1 stay equal under every pooling, and under Adam take a single one's steps.",
    ),
    Axis(
        "init", "Where z starts", "start of z", ("method.init_spread",),
        _one("method.init_spread"), lambda level: f"around 1, sd {level[0]:g}" if level[0] else "1",
    ),
    Axis(
        "head", "Classification head", "head", ("method.head",),
        _one("method.head"),
        lambda level: {"frozen": "frozen, with z on it", "wrapped": "trained, with z on it"}.get(level[0], "trained"),
    ),
    Axis(
        "decay", "Weight decay", "weight decay", ("training.weight_decay", "training.decay_vectors"),
        lambda r: (setting(r, "training.weight_decay"), setting(r, "training.decay_vectors")), _decay_label,
        "Decay pulls z to 0, not to 1, and the power amplifies it.",
    ),
)  # fmt: skip
ORDERS: dict[str, Sequence[Any]] = {"position": POSITIONS, "head": HEADS}


@dataclass(frozen=True)
class Ablation:
    """The records of one axis on one backbone: level -> records, in order."""

    axis: Axis
    backbone: str
    levels: tuple[tuple[Level, tuple[Record, ...]], ...]
    left_out: int  # runs of other conditions

    @property
    def base(self) -> Level | None:
        """The level of the base cell; None where it was not run."""
        return next((level for level, own in self.levels if any(map(is_base, own))), None)


def is_base(record: Record) -> bool:
    """Whether a record is of the base cell."""
    rate, own = _rate(record)
    return rate == own and all(setting(record, key) == value for key, value in BASE.items())


def ablations(records: list[Record]) -> list[Ablation]:
    """Every axis of which the records hold two levels or more.

    Raises:
        UserError: one cell and seed is there twice.
    """
    found = []
    for backbone in sorted({r["run"]["backbone"] for r in records}):
        own = [r for r in records if r["run"]["backbone"] == backbone and r["run"]["method"] == METHOD]
        for axis in AXES:
            belonging = [(level, r) for r in own if (level := _belongs(r, axis)) is not None]
            chosen = _alike(axis, belonging)
            levels: dict[Level, list[Record]] = defaultdict(list)
            for level, record in chosen:
                levels[level].append(record)
            if len(levels) > 1:
                _check(chosen)
                ordered = sorted(levels, key=lambda level: _place(axis, level))
                rows = tuple((level, tuple(levels[level])) for level in ordered)
                found.append(Ablation(axis, backbone, rows, len(belonging) - len(chosen)))
    return found


def _alike(axis: Axis, belonging: list[tuple[Level, Record]]) -> list[tuple[Level, Record]]:
    """Of each task the runs under one set of conditions: that with most levels, then with most runs."""
    tasks: dict[str, dict[str, list[tuple[Level, Record]]]] = defaultdict(lambda: defaultdict(list))
    for level, record in belonging:
        tasks[record["run"]["task"]][_rest(record, axis)].append((level, record))
    chosen = []
    for groups in tasks.values():
        most = min(groups, key=lambda rest: (-len({level for level, _ in groups[rest]}), -len(groups[rest]), rest))
        chosen += groups[most]
    return chosen


def _belongs(record: Record, axis: Axis) -> Level | None:
    fixed = {key: value for key, value in BASE.items() if key not in axis.keys}
    if any(setting(record, key) != value for key, value in fixed.items()):
        return None
    rate, base = _rate(record)
    if RATE not in axis.keys and rate != base:
        return None
    return axis.level(record)


def _place(axis: Axis, level: Level) -> tuple[Any, ...]:
    order = ORDERS.get(axis.name)
    if order is None:
        return tuple(POOLINGS.index(part) if part in POOLINGS else part for part in level)
    known = order.index(level[0]) if level[0] in order else len(order)
    return known, str(level[0])


def _check(chosen: list[tuple[Level, Record]]) -> None:
    """No cell and seed twice."""
    seen: dict[tuple[Any, ...], Record] = {}
    for level, record in chosen:
        cell = (record["run"]["task"], level, record["run"]["seed"])
        if cell in seen:
            raise UserError(
                f"{record_name(seen[cell])} and {record_name(record)} are the same cell and seed twice: "
                "move one of them out of runs/"
            )
        seen[cell] = record


def _rest(record: Record, axis: Axis) -> str:
    """What decides a run beside the axis and the seed, as text."""
    kept = json.loads(json.dumps(decisive(record["run"])))
    kept.pop("seed", None)
    kept["data"] = [record["run"]["data"].get("fingerprint"), record["run"]["data"].get("train_rows")]
    for key in (*axis.keys, RATE if RATE in axis.keys else "", "method.peft.degree"):
        node = kept
        *path, last = key.split(".")
        for name in path:
            node = node.get(name, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(last, None)
    return json.dumps(kept, sort_keys=True)
