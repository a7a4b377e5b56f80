"""One line per cell, with the time left of a sweep."""

from __future__ import annotations

import os
import time
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from propulsion.harness.record import PARALLEL_CELLS
from propulsion.harness.settings import Settings

TOTAL = "PROPULSION_SWEEP_CELLS"  # in the environment, so that a launcher's worker processes see it

_seconds_per_cell: list[float] = []


class SweepSize(Callback):
    """Hydra callback: notes before the first cell how many there are, and how many run at once."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ[TOTAL] = str(count_cells(list(config.hydra.overrides.task)))
        os.environ[PARALLEL_CELLS] = str(config.hydra.launcher.get("n_jobs") or 1)


def count_cells(overrides: list[str]) -> int:
    """The number of jobs that Hydra's basic sweeper makes of these overrides (globs count as one)."""
    total = 1
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
            total *= len(list(override.sweep_string_iterator()))
    return total


def position() -> tuple[int, int] | None:
    """This cell's place in the sweep, counted from 1, and the sweep's size; None outside a sweep."""
    total = int(os.environ.get(TOTAL, "0"))
    job: Any = HydraConfig.get().job
    if total == 0 or OmegaConf.is_missing(job, "num"):
        return None
    return int(job.num) + 1, total


def cell_line(settings: Settings, entry: dict[str, Any], ran: bool, started: float) -> str:
    """`[3/54] rte/minilm/lora seed 0: accuracy 71.5 last, 72.9 best; 11 s, about 9 min left`."""
    place = position()
    prefix = f"[{place[0]}/{place[1]}] " if place else ""
    seconds = time.monotonic() - started
    if ran:
        _seconds_per_cell.append(seconds)
    left = ""
    if place and _seconds_per_cell and place[0] < place[1]:
        mean = sum(_seconds_per_cell) / len(_seconds_per_cell)
        at_once = int(os.environ.get(PARALLEL_CELLS, "1"))
        left = f", about {duration(mean * (place[1] - place[0]) / at_once)} left"
    took = duration(seconds) if ran else "done before, skipped"
    return f"{prefix}{settings.cell}: {_outcome(entry)}; {took}{left}"


def _outcome(entry: dict[str, Any]) -> str:
    if entry["status"] != "success":
        return f"{entry['status']} ({entry['error']['type']}: {entry['error']['message']})"
    primary = entry["eval"]["primary"]
    last, best = entry["eval"]["last"][primary], entry["eval"]["best"][primary]
    return f"{primary} {100 * last:.1f} last, {100 * best:.1f} best"


def duration(seconds: float) -> str:
    """`42 s`, `9 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
