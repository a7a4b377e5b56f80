"""Tracking with W&B. The record on disk is the truth: nothing that goes wrong here ends a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from propulsion.harness.record import without_paths
from propulsion.harness.settings import Settings

INIT_TIMEOUT_SECONDS = 30


class Tracker(TrainerCallback):
    """Sends a cell's losses and scores to W&B; does nothing when tracking is off or has failed."""

    def __init__(self) -> None:
        self.run: Any = None

    def start(self, settings: Settings, key: str) -> None:
        """Open the run, where tracking is on."""
        if settings.tracking.name == "wandb" and int(os.environ.get("RANK", "0")) == 0:
            self._guard("start", lambda: self._start(settings, key))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        if self.run is not None and logs:
            self._guard("log", lambda: self.run.log(dict(logs), step=state.global_step))

    def abandon(self) -> None:
        """Close the run of a cell that was refused or interrupted, so that the next one gets its own."""
        if self.run is not None:
            self._guard("finish", lambda: self.run.finish(exit_code=1))
            self.run = None

    def finish(self, record: dict[str, Any]) -> None:
        """Log the record's scores, counts and cost, and close the run."""
        if self.run is not None:
            self._guard("finish", lambda: self._finish(record))

    def _start(self, settings: Settings, key: str) -> None:
        import wandb

        tracking = settings.tracking
        mode = tracking.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        Path(settings.results_dir).mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            id=key,  # the same cell run again replaces itself on the server
            project=tracking.project,
            entity=tracking.entity,
            mode=mode,  # type: ignore[arg-type]
            dir=settings.results_dir,
            name=settings.cell,
            group=f"{settings.task.name}/{settings.backbone.name}/{settings.method.name}",
            tags=[settings.profile, settings.task.name, settings.backbone.name, settings.method.name],
            config={k: v for k, v in without_paths(settings.config).items() if k != "tracking"},
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS, x_disable_meta=True, host=""
            ),
        )

    def _finish(self, record: dict[str, Any]) -> None:
        scores = {
            f"{rule}/{name}": score
            for rule in ("best", "last", "heldout")
            for name, score in (record["eval"][rule] or {}).items()
        }
        self.run.summary.update({"status": record["status"], **scores, **record["params"], **record["cost"]})
        offline, folder = self.run.offline, Path(self.run.dir).parent
        self.run.finish(exit_code=0 if record["status"] == "success" else 1)
        if offline:
            print(f"W&B was offline. To upload this run: wandb sync {folder}")

    def _guard(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever W&B raises
            self.run = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"W&B failed to {what} ({reason}); the cell goes on without it", file=sys.stderr)
