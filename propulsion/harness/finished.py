"""Cells that need not run: found by their key, before torch or any library of models is imported."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

from propulsion.harness import leases, ranks, record
from propulsion.harness.errors import RunningElsewhere
from propulsion.harness.kept import lacks_weights
from propulsion.harness.leases import Lease
from propulsion.harness.settings import Settings
from propulsion.harness.sources import open_source


def skipped(settings: Settings) -> dict[str, Any] | None:
    """The record of a cell that need not run; None where it may have to, or where several processes have to agree.

    Raises:
        UserError: bad input.
    """
    if ranks.size() > 1:
        return None
    key = record.cell_key(settings.config, open_source(settings.task, settings.data).fingerprint())
    done = finished(settings, key)
    if done is not None:
        tidy(settings, key)
    return done


def finished(settings: Settings, key: str, holding: bool = False) -> dict[str, Any] | None:
    """The record of a cell that need not run. The lease's holder sets aside what is none."""
    path = record.record_path(settings, key)
    if holding:
        record.remove_leftovers(path)
    done, broken = record.look(path)
    if broken and holding:
        print(f"{path} is {broken}; set aside as {record.set_aside(path).name}", file=sys.stderr)
    if done is None or done["status"] == record.FAILED or lacks_weights(settings, done):
        return None
    return None if settings.rerun and done["status"] == record.DIVERGED else done


def tidy(settings: Settings, key: str) -> None:
    """Remove what a process left of a finished cell that was killed after it wrote the record."""
    checkpoints, folder = Path(settings.results_dir, "checkpoints", key), Path(settings.results_dir, leases.FOLDER)
    left = checkpoints.exists() and not settings.training.keep_checkpoints
    if left or leases.find(folder, key) is not None:
        with contextlib.suppress(RunningElsewhere, OSError), Lease(folder, key, {"cell": settings.cell}):
            if left:
                shutil.rmtree(checkpoints, ignore_errors=True)
