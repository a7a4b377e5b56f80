"""Runs of one method with different settings are different rows: never averaged as if they were seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from propulsion.harness.record import IGNORED
from propulsion.harness.tables.reading import Record


def variants(records: list[Record]) -> list[str]:
    """For each record of one method, what sets its row apart: `degree=5`, or '' where nothing differs.

    A setting counts when it differs within one task; recipes may well give each task its own values.
    """
    texts = [json.dumps(_decisive(record["run"]["config"]), sort_keys=True) for record in records]
    by_task: dict[str, set[str]] = defaultdict(set)
    for record, text in zip(records, texts, strict=True):
        by_task[record["run"]["task"]].add(text)
    differing: dict[str, None] = {}
    for configs in by_task.values():
        if len(configs) > 1:
            flat = [_flatten(json.loads(text)) for text in sorted(configs)]
            keys = sorted({key for config in flat for key in config})
            differing |= {key: None for key in keys if len({config.get(key, "-") for config in flat}) > 1}
    if not differing:
        return [""] * len(records)
    labels = []
    for text in texts:
        flat_config = _flatten(json.loads(text))
        words = (f"{key.rsplit('.', 1)[-1]}={flat_config.get(key, '-')}" for key in differing)
        labels.append(", ".join(dict.fromkeys(words)))
    return labels


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that makes a run another run and not another seed of the same."""
    kept = {key: value for key, value in config.items() if key not in (*IGNORED[""], "seed", "data")}
    for group, keys in IGNORED.items():
        if isinstance(kept.get(group), dict):
            kept[group] = {key: value for key, value in kept[group].items() if key not in keys}
    return kept


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
