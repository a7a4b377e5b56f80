"""Choose a learning rate for each method on held-out training rows, and write it as recipes.

    python -m scripts.search_rates data_dir=<folder> on=sst2,stsb tasks=rte,mrpc,sst2,stsb methods=lora,propulsion

For each method: a third of its default rate, the default, and three times it; while the best is at an edge, one
step further out. The best is the highest mean, over the tasks named by `on`, of the primary metric on training
rows held out of the train split. The recipe, one file for each of `tasks`, names what was tried and found. It
is written to conf/recipe; of a task, backbone or method of your own (`--config-dir <folder>`), to <folder>/recipe.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from propulsion.harness import configs, params
from propulsion.harness.errors import UserError, ended
from propulsion.harness.record import REPOSITORY, SUCCESS, decisive
from propulsion.harness.tables import load_records
from scripts.reproduce import INTERRUPTED, run_sweep

STEP = 3.0
MOST_EXTENSIONS = 2
DEFAULTS = {
    "on": "",
    "tasks": "",
    "methods": "",
    "data_dir": "",
    "backbone": "minilm",
    "results_dir": "results/search",
    "overrides": "",  # more words for the sweep, separated by blanks
}

Scores = dict[float, float]  # learning rate -> mean score on the held-out rows


def round_rate(rate: float) -> float:
    """Two significant digits: 1e-3 / 3 is typed and recorded as 0.00033."""
    return float(f"{rate:.1e}")


def first_rates(default: float) -> list[float]:
    """The three rates tried first, around a method's default."""
    return [round_rate(default / STEP), round_rate(default), round_rate(default * STEP)]


def next_rate(scores: Scores) -> float | None:
    """One step beyond the edge that the best rate lies on, or None when it lies inside, or nothing has a score."""
    if not scores:
        return None
    best = best_rate(scores)
    if best == max(scores):
        return round_rate(best * STEP)
    if best == min(scores):
        return round_rate(best / STEP)
    return None


def best_rate(scores: Scores) -> float:
    """The rate with the highest score; of equals the smallest.

    Raises:
        UserError: no rate has a score on every task.
    """
    if not scores:
        raise UserError(
            "no learning rate has a finished run on every task that is compared; see the failed cells above"
        )
    return min(scores, key=lambda rate: (-scores[rate], rate))


def alike(records: list[dict[str, Any]], method: str, backbone: str) -> list[dict[str, Any]]:
    """The records of one method on one backbone.

    Raises:
        UserError: they are not all of one size and seed, or those of a task differ in more than the rate, so that
            their scores do not compare.
    """
    mine = [r for r in records if (r["run"]["method"], r["run"]["backbone"]) == (method, backbone)]
    sizes = {(r["run"]["seed"], r["run"]["data"]["train_rows"], r["run"]["data"]["eval_rows"]) for r in mine}
    if len(sizes) != 1:
        found = "none" if not sizes else ", ".join(map(str, sorted(sizes)))
        raise UserError(
            f"the search of {method} on {backbone} needs runs of one (seed, training rows, held-out rows), "
            f"found {found}; give a results_dir of its own"
        )
    ways: dict[str, set[str]] = {}
    for entry in mine:
        ways.setdefault(entry["run"]["task"], set()).add(_way(entry["run"]))
    mixed = [task for task, found in ways.items() if len(found) > 1]
    if mixed:
        raise UserError(
            f"the runs of {method} on {mixed[0]} differ in other settings or data than the learning rate: "
            "give each search a results_dir of its own"
        )
    return mine


def _way(run: dict[str, Any]) -> str:
    """All that decides a run's score but the learning rate."""
    config = decisive(run)
    training = {key: value for key, value in config["training"].items() if key != "learning_rate"}
    return json.dumps([{**config, "training": training}, run["data"]["fingerprint"]], sort_keys=True)


def mean_scores(records: list[dict[str, Any]], tasks: list[str]) -> Scores:
    """Mean primary score over the tasks, for each rate that has all of them. One that diverged scores 0."""
    found: dict[float, dict[str, float]] = {}
    for entry in records:
        if entry["run"]["task"] in tasks:
            score = entry["eval"]["last"][entry["eval"]["primary"]] if entry["status"] == SUCCESS else 0.0
            rate = float(entry["run"]["config"]["training"]["learning_rate"])
            found.setdefault(rate, {})[entry["run"]["task"]] = score
    return {rate: sum(of.values()) / len(of) for rate, of in found.items() if len(of) == len(tasks)}


def recipe_text(scores: Scores, tasks: list[str], entry: dict[str, Any]) -> str:
    """The recipe file: the chosen rate and where it comes from."""
    data = entry["run"]["data"]
    tried = ", ".join(f"{rate:g}: {100 * scores[rate]:.1f}" for rate in sorted(scores))
    source = (
        f"ours: mean of {' and '.join(tasks)} on {data['eval_rows']} held-out training rows after "
        f"{entry['cost']['steps']} steps on {data['train_rows']} others, seed {entry['run']['seed']} ({tried})"
    )
    block = {
        "recipe": {"version": 1, "sources": {"training.learning_rate": source}},
        "training": {"learning_rate": best_rate(scores)},
    }
    header = "# @package _global_\n# Written by scripts/search_rates.py\n"
    return header + OmegaConf.to_yaml(OmegaConf.create(block))


def run_rates(options: dict[str, str], method: str, rates: list[float]) -> None:
    """Run the cells of one method; those already done are skipped.

    Raises:
        UserError: the sweep could not run, or a cell of it failed or runs elsewhere.
        KeyboardInterrupt: it was stopped; the same command goes on.
    """
    command = [
        sys.executable,
        "-m",
        "scripts.run",
        "-m",
        *configs.flag(),
        "experiment=search",
        f"backbone={options['backbone']}",
        "~recipe",  # the search does not hang on what an earlier one found
    ]
    command += [
        f"data.dir={options['data_dir']}",
        f"results_dir={options['results_dir']}",
        f"method={method}",
    ]
    command += [f"task={options['on']}", f"training.learning_rate={','.join(f'{rate:g}' for rate in rates)}"]
    code = run_sweep([*command, *options["overrides"].split()])
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"the search over method={method} is not whole (exit code {code}); see the lines above")


def search(options: dict[str, str]) -> list[Path]:
    """Run the whole search; returns the recipe files written.

    Raises:
        UserError: a sweep could not run, or no rate has a score on every task.
    """
    written = []
    compared, backbone = options["on"].split(","), options["backbone"]
    for group, names in (("method", options["methods"]), ("task", f"{options['on']},{options['tasks']}")):
        for name in names.split(","):
            configs.file(group, name)  # an unknown one is named before anything runs
    for method in options["methods"].split(","):
        default = params.load_method(method).learning_rate
        run_rates(options, method, first_rates(default))
        for _ in range(MOST_EXTENSIONS):
            rate = next_rate(mean_scores(alike(load_records(options["results_dir"]), method, backbone), compared))
            if rate is None:
                break
            run_rates(options, method, [rate])
        records = alike(load_records(options["results_dir"]), method, backbone)
        scores = mean_scores(records, compared)
        done = next((entry for entry in records if entry["status"] == SUCCESS), None)
        if done is None:
            raise UserError(f"every run of {method} diverged: no rate to recommend; start from a lower one")
        for task in options["tasks"].split(","):
            root = configs.owner(("method", method), ("backbone", backbone), ("task", task))
            path = root / "recipe" / method / backbone / f"{task}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(recipe_text(scores, compared, done), encoding="utf-8")
            written.append(path)
    return written


def main(arguments: list[str]) -> int:
    """Parse `key=value` words, search, print the files written."""
    options = dict(DEFAULTS)
    try:
        for word in configs.take(arguments):
            key, _, value = word.partition("=")
            if key not in options:
                raise UserError(f"unknown option '{key}': use {', '.join(options)}")
            options[key] = value
        for key in ("on", "tasks", "methods", "data_dir"):
            if not options[key]:
                raise UserError(f"{key} is missing: type {key}=...")
        for path in search(options):
            print(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(ended(main))
