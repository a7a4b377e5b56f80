"""One line per cell, with the time left of a sweep."""

from __future__ import annotations

import os
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from propulsion.harness import sweeps
from propulsion.harness.record import PARALLEL_CELLS, SUCCESS
from propulsion.harness.settings import Settings


class SweepSize(Callback):
    """Hydra callback: notes before the first cell how many there are, and how many run at once."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        grid = config.hydra.sweeper.get("params") or {}  # of an experiment's own file
        words = {word.partition("=")[0]: word for word in config.hydra.overrides.task}
        own = [f"{key}={values}" for key, values in grid.items() if key not in words]
        sweeps.begin(str(config.results_dir), count_cells([*own, *config.hydra.overrides.task]))
        os.environ[PARALLEL_CELLS] = str(config.hydra.launcher.get("n_jobs") or 1)


def count_cells(overrides: list[str]) -> int:
    """The number of jobs that Hydra's basic sweeper makes of these overrides (globs count as one)."""
    total = 1
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
            total *= len(list(override.sweep_string_iterator()))
    return total


def job() -> tuple[int, list[str]]:
    """This cell's number in the sweep, from 0, and the words that compose it; (0, []) outside Hydra."""
    if not HydraConfig.initialized():
        return 0, []
    config: Any = HydraConfig.get()
    number = 0 if OmegaConf.is_missing(config.job, "num") else int(config.job.num)
    return number, list(config.overrides.task)


def note_of(
    settings: Settings, entry: dict[str, Any], ran: bool, seconds: float, number: int, words: list[str]
) -> sweeps.Note:
    """What the sweep keeps of a cell that has a record."""
    state = {SUCCESS: sweeps.DONE if ran else sweeps.SKIPPED}.get(entry["status"], entry["status"])
    reason = _reason(entry) if entry["error"] else ""
    return sweeps.Note(number, state, settings.cell, reason, seconds if ran else 0.0, words)


def cell_line(settings: Settings, entry: dict[str, Any], ran: bool, seconds: float, number: int) -> str:
    """`[3/54] rte/minilm/lora seed 0: accuracy 71.5 last, 72.9 best; 11 s, about 9 min left, 1 failed`."""
    cells = sweeps.size()
    prefix = f"[{number + 1}/{cells}] " if cells else ""
    took = duration(seconds) if ran else "done before, skipped"
    return f"{prefix}{settings.cell}: {outcome(entry)}; {took}{_rest(sweeps.notes(), cells) if ran else ''}"


def _rest(notes: list[sweeps.Note], cells: int) -> str:
    """What a sweep has before it, by the mean time of the cells that ran, in whichever process."""
    seconds = [note.seconds for note in notes if note.seconds]
    left = ""
    if seconds and len(notes) < cells:
        at_once = int(os.environ.get(PARALLEL_CELLS, "1"))
        left = f", about {duration(sum(seconds) / len(seconds) * (cells - len(notes)) / at_once)} left"
    for state in (sweeps.FAILED, sweeps.DIVERGED):
        count = sum(note.state == state for note in notes)
        left += f", {count} {state}" if count and cells > 1 else ""
    return left


def outcome(entry: dict[str, Any]) -> str:
    """`accuracy 71.5 last, 72.9 best`, or the status and the error."""
    if entry["status"] != "success":
        return f"{entry['status']} ({_reason(entry)})"
    primary = entry["eval"]["primary"]
    last, best = entry["eval"]["last"][primary], entry["eval"]["best"][primary]
    return f"{primary} {100 * last:.1f} last, {100 * best:.1f} best"


def _reason(entry: dict[str, Any]) -> str:
    """The error in a line."""
    message = " ".join(str(entry["error"]["message"]).split())
    return f"{entry['error']['type']}: {message[:200]}"


def duration(seconds: float) -> str:
    """`42 s`, `9 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
