"""Runs of one method with different settings are different rows: never averaged as if they were seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from propulsion.harness.record import decisive
from propulsion.harness.tables.reading import Record


def variants(records: list[Record]) -> list[str]:
    """For each record of one method, what sets its row apart: `degree=5`, or '' where nothing differs.

    A setting counts when it differs within one task; recipes may well give each task its own values. A start
    from another run counts whatever the task: no such run shares a row, or an average, with fresh ones.
    """
    decisives = [_decisive(record) for record in records]
    texts = [json.dumps(own, sort_keys=True) for own in decisives]
    by_task: dict[str, set[str]] = defaultdict(set)
    for record, text in zip(records, texts, strict=True):
        by_task[record["run"]["task"]].add(text)
    differing: dict[str, None] = {}
    for configs in by_task.values():
        if len(configs) > 1:
            flat = [_flatten(json.loads(text)) for text in sorted(configs)]
            keys = sorted({key for config in flat for key in config})
            differing |= {key: None for key in keys if len({config.get(key, "-") for config in flat}) > 1}
    if any(own["start"] is not None for own in decisives):
        differing["start"] = None
    if not differing:
        return [""] * len(records)
    labels = {}
    for text in dict.fromkeys(texts):
        flat_config = _flatten(json.loads(text))
        words = (f"{key.rsplit('.', 1)[-1]}={flat_config.get(key, '-')}" for key in differing)
        labels[text] = ", ".join(dict.fromkeys(words))
    return [labels[text] for text in texts]


def _decisive(record: Record) -> dict[str, Any]:
    """What makes a run another run and not another seed of the same; its data `check_comparable` has seen to."""
    kept = {key: value for key, value in decisive(record["run"]).items() if key not in ("seed", "data")}
    return {**kept, "start": short_start(kept["start"])}


def short_start(start: str | None) -> str | None:
    """The digest of a file to start from, as tables show it."""
    return start[:12] if isinstance(start, str) else None


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
