"""Records as evidence for or against the paper: which ones count, and what they say."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from propulsion.harness.record import IGNORED, SUCCESS

Record = dict[str, Any]


def unusable(record: Record) -> str | None:
    """Why a record is no evidence for or against the paper, or None."""
    run, config = record["run"], record["run"]["config"]
    if run["profile"] != "paper":
        return f"profile {run['profile']}"
    if record["status"] != SUCCESS:
        return str(record["status"])
    if not run["data"].get("official"):
        return "not the published evaluation rows"
    if (run["weights"] or {}).get("id") == "random":
        return "random weights"
    if config["training"].get("max_train_rows") is not None or config["training"].get("max_steps", -1) > 0:
        return "training cut short"
    return None


def runs_of(records: list[Record], method: str, backbone: str, task: str) -> tuple[list[Record], int]:
    """The cell's runs, one for each seed, and how many runs with other settings are left out.

    Runs with other settings are no seeds of the same cell: the settings with most seeds are taken, by the
    order of their text where that is a tie, whatever they score.
    """
    groups: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        run = record["run"]
        if (run["method"], run["backbone"], run["task"]) == (method, backbone, task):
            groups[_settings(run)].setdefault(run["seed"], record)
    if not groups:
        return [], 0
    chosen = min(groups, key=lambda text: (-len(groups[text]), text))
    own = [groups[chosen][seed] for seed in sorted(groups[chosen])]
    return own, sum(map(len, groups.values())) - len(own)


def by_seed(records: list[Record], method: str, backbone: str, task: str) -> dict[int, Record]:
    """The cell's runs by seed."""
    own, _ = runs_of(records, method, backbone, task)
    return {record["run"]["seed"]: record for record in own}


def _settings(run: dict[str, Any]) -> str:
    """All that decides a run's scores but the seed, as text."""
    kept = {key: value for key, value in run["config"].items() if key not in (*IGNORED[""], "seed")}
    for group, keys in IGNORED.items():
        if isinstance(kept.get(group), dict):
            kept[group] = {key: value for key, value in kept[group].items() if key not in keys}
    return json.dumps([kept, run["data"].get("fingerprint")], sort_keys=True)


def row_score(record: Record, metric: str, rule: str) -> float | None:
    """A metric of the last validation row, or of the best by the primary metric, in points of 100."""
    history, primary = record["eval"]["history"], record["eval"]["primary"]
    if not history or metric not in history[-1]["scores"]:
        return None
    row = history[-1] if rule == "last row" else max(history, key=lambda point: point["scores"][primary])
    return 100 * float(row["scores"][metric])


def first_step(record: Record, metric: str, target: float) -> int | None:
    """The step of the first evaluation at or above the target; None where there is none."""
    steps = (p["step"] for p in record["eval"]["history"] if p["scores"].get(metric, 0.0) >= target)
    return next(steps, None)


def below_at(record: Record, step: int | None, limit: float) -> bool:
    """Whether an evaluation at or after the limit came before `step`, where the target was reached.

    Between two evaluations the accuracy is unknown, so that only this refutes a claim about steps.
    """
    steps = (point["step"] for point in record["eval"]["history"])
    return any(s >= limit and (step is None or s < step) for s in steps)


def footprint(record: Record) -> tuple[Any, ...] | None:
    """What peak memory may be compared across; None where it was not measured on a GPU."""
    env, training = record["env"], record["run"]["config"]["training"]
    if str(env["device"]).startswith("CPU") or not record["cost"]["peak_memory_bytes"]:
        return None
    return (env["device"], env["precision"], training["batch_size"], training["max_length"])


def conditions(records: list[Record]) -> str:
    """What the runs of a cell were made with, in a line."""
    if not records:
        return ""
    run, env = records[0]["run"], records[0]["env"]
    training, recipe = run["config"]["training"], run["config"].get("recipe")
    parts = [
        f"{run['data']['source']} data",
        f"recipe {recipe['version']}" if recipe else "no recipe",
        f"learning rate {training['learning_rate']:g}",
        f"batch {training['batch_size']}",
        f"weights {(run['weights'] or {}).get('id')}",
        str(env["precision"]),
        " and ".join(sorted({str(record["env"]["device"]) for record in records})),
        f"commit {str(env['commit'])[:9]}",
    ]
    return ", ".join(parts)
