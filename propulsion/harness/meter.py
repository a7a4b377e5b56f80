"""What a run costs: clock and token counts of training alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from propulsion.harness.turns import clock


class Meter(TrainerCallback, ExportableState):
    """Clock and token counts of training alone; kept in checkpoints, so that a resumed run adds up."""

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.tokens = 0
        self.padded_tokens = 0
        self._mark = 0.0
        self.pending_loss = 0.0  # summed since the last log line, at step `logged_at`
        self.logged_at = 0
        self._masks: list[torch.Tensor] = []
        self._computed: list[torch.Tensor] = []

    def state(self) -> dict[str, Any]:
        self.settle()
        kept = ("train_seconds", "eval_seconds", "tokens", "padded_tokens", "pending_loss", "logged_at")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in kept}}

    def count(self, mask: torch.Tensor, padded: bool = True) -> None:
        """Count a batch's real tokens and those computed (all places, unless no padding was); read later."""
        real = mask.sum()  # not read from the device now, which would stall a step
        self._masks.append(real)
        if padded:
            self.padded_tokens += mask.numel()
        else:
            self._computed.append(real)

    def settle(self) -> None:
        """Wait for the device, then add what is pending."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.tokens += sum(int(mask) for mask in self._masks)
        self.padded_tokens += sum(int(mask) for mask in self._computed)
        self._masks, self._computed = [], []

    def restart(self) -> None:
        """Leave the time since the last lap out: it was not training."""
        self._mark = clock()

    def lap(self) -> None:
        """Add the time since the last lap or restart to training."""
        now = clock()
        self.train_seconds += now - self._mark
        self._mark = now

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.restart()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.lap()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.restart()
