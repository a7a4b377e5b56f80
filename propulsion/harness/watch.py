"""What a run is watched for: a loss that leaves the finite numbers or runs away, a stop, a checkpoint that is due."""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from propulsion.harness import ranks
from propulsion.harness.leases import Lease
from propulsion.harness.stops import Stop

# A loss (mean of ten steps) over ten times the first one, five times in a row, does not come back: a classifier that
# knows nothing stays near the first.
RUNAWAY_FACTOR = 10.0
RUNAWAY_LOGS = 5
AGREE_STEPS = 10  # steps between two agreements of several processes; each waits for the slowest


class Watch(TrainerCallback):
    """Ends a run that diverged or was asked to stop, and saves a checkpoint when the last one is old enough."""

    def __init__(self, checkpoint_seconds: float, stop: Stop) -> None:
        self.checkpoint_seconds = checkpoint_seconds
        self.stop = stop
        self.stopped = False
        self.saved_at = time.monotonic()
        self.diverged: str | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.diverged = divergence([entry["loss"] for entry in state.log_history if "loss" in entry])
            if self.diverged:
                self.diverged += f" at step {state.global_step}"
                control.should_training_stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Clocks and signals differ between processes, which must all save and stop at the same step.
        if state.global_step >= state.max_steps or (ranks.size() > 1 and state.global_step % AGREE_STEPS):
            return
        old = time.monotonic() - self.saved_at > self.checkpoint_seconds
        self.stopped, old = ranks.either(self.stop.asked(), old)
        control.should_save = control.should_save or old or self.stopped
        control.should_training_stop = control.should_training_stop or self.stopped

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.saved_at = time.monotonic()


class Holder(TrainerCallback):
    """Ends a run whose lease another process took over, as after a long sleep of this one; writes nothing more."""

    def __init__(self, lease: Lease | None) -> None:
        self.lease = lease

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.lease is not None and (self.lease.lost or control.should_save):
            self.lease.check()

    def check(self) -> None:
        """Raise RunningElsewhere where the cell is another process's now."""
        if self.lease is not None:
            self.lease.check()


def divergence(losses: list[float]) -> str | None:
    """Why the logged training losses, in their order, are those of a run that diverged; None where they are not."""
    if losses and not math.isfinite(losses[-1]):
        return f"the training loss is {losses[-1]}"
    latest = losses[-RUNAWAY_LOGS:]
    if len(losses) > RUNAWAY_LOGS and min(latest) > RUNAWAY_FACTOR * losses[0]:
        return f"the training loss ran away, from {losses[0]:.3g} to {losses[-1]:.3g}"
    return None
