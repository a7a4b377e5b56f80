"""Records as evidence for or against the paper: which ones count, and what they say."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from propulsion.harness import recipes
from propulsion.harness.record import SUCCESS, decisive
from propulsion.harness.tables.conditions import footprint

Record = dict[str, Any]
EVALUATED_OTHERWISE = "evaluated at other steps than the recipe's, which counts for the claims of speed alone"
EVALUATION = {"training.evaluations", "training.eval_steps"}


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
    if decisive(run)["start"] is not None:
        return "started from another run"
    return _off_recipe(run)


def _off_recipe(run: dict[str, Any]) -> str | None:
    """How a run departs from its cell's recipe, or None."""
    expected = recipes.composed(run["method"], run["backbone"], run["task"])
    if expected is None or not run["config"].get("recipe"):
        return "no recipe"
    ours, theirs = (_flat(decisive({"config": config})) for config in (run["config"], expected))
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if not differing:
        return None
    if EVALUATION.issuperset(differing):
        return EVALUATED_OTHERWISE
    return f"not by the recipe: {', '.join(differing)}"


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """What a recipe is about, `training.epochs` -> value."""
    groups = {group: config.get(group) or {} for group in recipes.GROUPS}
    return {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}


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
    kept = {key: value for key, value in decisive(run).items() if key != "seed"}
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


def evaluated_by(record: Record, limit: float) -> bool:
    """Whether there is an evaluation at or before a step: only then can a claim of `within` so many steps hold."""
    return any(point["step"] <= limit for point in record["eval"]["history"])


def incomparable(*records: Record) -> str:
    """Why the peak memory of runs cannot be compared, as in `precision differs`; '' where it can."""
    if any(str(record["env"]["device"]).startswith("CPU") for record in records):
        return "not measured on a GPU"
    if not all(record["cost"]["peak_memory_bytes"] for record in records):
        return "peak memory not measured"
    footprints = [footprint(record) for record in records]
    differing = [name for name in footprints[0] if len({f[name] for f in footprints if f[name] is not None}) > 1]
    return f"{' and '.join(differing)} {'differs' if len(differing) == 1 else 'differ'}" if differing else ""


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
