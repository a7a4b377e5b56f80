"""Tracking with W&B. The record on disk is the truth: nothing that goes wrong here ends a run."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from propulsion.harness import ranks
from propulsion.harness.files import try_writing
from propulsion.harness.record import public, without_paths
from propulsion.harness.settings import Settings
from propulsion.harness.turns import current

INIT_TIMEOUT_SECONDS = 30


class Tracker(TrainerCallback):
    """Sends a cell's losses and scores to W&B; does nothing when tracking is off or has failed."""

    offline = False  # after a failure to go online: the cells that follow do not wait for it again
    off = False  # after a failure offline

    def __init__(self) -> None:
        self.run: Any = None

    def start(self, settings: Settings, key: str) -> None:
        """Open the run, where tracking is on."""
        if settings.tracking.name != "wandb" or ranks.rank() != 0 or Tracker.off:
            return
        if self.run is not None:  # a cell that did not fit into memory, tried again
            self.abandon()
        group = f"{settings.task.name}/{settings.backbone.name}/{settings.method.name}"
        config = {k: v for k, v in public(without_paths(settings.config)).items() if k != "tracking"}
        tags = [settings.profile, settings.task.name, settings.backbone.name, settings.method.name]
        self.open(settings, id=key, name=settings.cell, group=group, tags=tags, config=config)

    def open(self, settings: Settings, **facts: Any) -> None:
        """Open a run under an id of ours: the same one again replaces itself on the server.

        Where W&B cannot be reached or the login is broken, this run and those after it are offline, and can be sent
        later; where that fails too, as with a full disk, there is no tracking. Either is said once.
        """
        mode = settings.tracking.mode
        if not self._guard("start", lambda: try_writing(Path(settings.results_dir, "wandb"))):
            Tracker.off = True
            return
        self._guard("start", lambda: self._open(settings, "offline" if Tracker.offline else mode, facts))
        if self.run is None and not Tracker.offline:
            Tracker.offline = True
            self._guard("start offline", lambda: self._open_again(settings, facts))
        Tracker.off = self.run is None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """A resumed run tells again what was logged before: an offline run replaces the one that was cut short."""
        if self.run is not None and state.global_step:
            for entry in state.log_history:
                self.on_log(args, state, control, logs=entry, step=int(entry["step"]))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        logs: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        if self.run is not None and logs:
            self._guard("log", lambda: self.run.log(dict(logs), step=state.global_step if step is None else step))

    def abandon(self) -> None:
        """Close the run of a cell that was refused or interrupted, so that the next one gets its own."""
        if self.run is not None:
            self._guard("finish", lambda: self.run.finish(exit_code=1))
            self.run = None

    def finish(self, record: dict[str, Any]) -> None:
        """Log the record's scores, counts and cost, and close the run."""
        if self.run is not None:
            self._guard("finish", lambda: self._finish(record))

    def _open_again(self, settings: Settings, facts: dict[str, Any]) -> None:
        import wandb

        if current() is not None:  # of a pack, whose others may have theirs open
            facts = {**facts, "id": f"{facts['id']}-offline"} if "id" in facts else facts
        else:
            wandb.teardown()  # it holds the id of the run that could not start
        self._open(settings, "offline", facts)

    def _open(self, settings: Settings, mode: str, facts: dict[str, Any]) -> None:
        import wandb

        logging.raiseExceptions = False  # else a disk that fills up prints a traceback for each line of W&B's own log
        tracking = settings.tracking
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        Path(settings.results_dir).mkdir(parents=True, exist_ok=True)
        if mode == "offline":
            supersede(Path(settings.results_dir, "wandb"), facts["id"])
        self.run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            mode=mode,  # type: ignore[arg-type]
            dir=settings.results_dir,
            reinit="create_new" if current() is not None else None,  # cells of a pack each log to their own
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS, x_disable_meta=True, host=""
            ),
            **facts,
        )

    def _finish(self, record: dict[str, Any]) -> None:
        scores = {
            f"{rule}/{name}": score
            for rule in ("best", "last", "heldout")
            for name, score in (record["eval"][rule] or {}).items()
        }
        self.run.summary.update({"status": record["status"], **scores, **record["params"], **record["cost"]})
        self._close(0 if record["status"] == "success" else 1)

    def _close(self, code: int) -> None:
        offline, folder = self.run.offline, Path(self.run.dir).parent
        self.run.finish(exit_code=code)
        self.run = None
        if offline:
            try_writing(folder)  # what a full disk did not take, W&B does not tell
            print(f"W&B was offline. To upload this run: wandb sync {folder}")

    def _guard(self, what: str, action: Callable[[], None]) -> bool:
        try:
            action()
            return True
        except Exception as error:  # whatever W&B raises
            self.run = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"W&B failed to {what} ({reason}); the cell goes on without it", file=sys.stderr)
            return False


def supersede(folder: Path, run_id: str) -> None:
    """Move earlier offline runs of this id to `superseded`: `wandb sync wandb/offline-run-*` sends each id once.

    Args:
        folder: W&B's own, with one folder for each run in it.
    """
    for earlier in folder.glob(f"offline-run-*-{run_id}"):
        (folder / "superseded").mkdir(exist_ok=True)
        os.replace(earlier, folder / "superseded" / earlier.name)


def log_tables(settings: Settings) -> None:
    """Log the tables and figures of a results folder, in one run with an id of the folder's name and profile."""
    if settings.tracking.name != "wandb" or ranks.rank() != 0 or Tracker.off:
        return
    tracker, folder = Tracker(), Path(settings.results_dir)
    name = f"{folder.name} {settings.profile}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    tracker.open(
        settings, id=f"tables-{digest}", name=f"tables {name}", group="tables", tags=[settings.profile, "tables"]
    )
    if tracker.run is not None:
        tracker._guard("log the tables", lambda: _log_tables(tracker, folder))


def _log_tables(tracker: Tracker, folder: Path) -> None:
    import wandb

    from propulsion.harness.tables import tables_of, to_csv  # records know tracking's settings, not its tables

    for suite, tables in tables_of(folder).items():
        lines: list[list[Any]] = list(csv.reader(io.StringIO(to_csv(tables))))
        header, rows = lines[0], lines[1:]
        tracker.run.log({f"table/{suite}": wandb.Table(columns=header, data=list(rows))})
    for figure in sorted(folder.glob("figures/*.png")):
        tracker.run.log({f"figure/{figure.stem}": wandb.Image(str(figure))})
    tracker._close(0)
