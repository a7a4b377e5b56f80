"""How far z^k has moved from 1, looked at where the model is evaluated."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from propulsion.harness import ranks
from propulsion.tuner import PropulsionLayer

USUAL = (0.1, 10.0)  # trained z stay within 0.98 to 1.02 in the paper: z^55 within 0.33 to 2.97


def scale_range(model: nn.Module) -> tuple[float, float] | None:
    """The smallest and the largest z^k of a model's scaled layers; None where it has none. One wait for the device."""
    ends = []
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, PropulsionLayer):
                for name in layer.propulsion_z:
                    ends += list(layer.vector(name).pow(layer.degree[name]).aminmax())
    if not ends:
        return None
    lowest, highest = torch.stack(ends).aminmax()
    return float(lowest), float(highest)


class ScaleWatch(TrainerCallback, ExportableState):
    """Keeps the extremes of z^k over all evaluations for the record; warns once when one leaves `USUAL`.

    A scale near 0 closes a feature for good and a large one drowns the others; both come from a learning rate that is
    too high for the degree. Kept in checkpoints, so that a resumed run has the extremes of the whole.
    """

    def __init__(self, cell: str = "") -> None:
        self.cell = cell
        self.lowest: float | None = None
        self.highest: float | None = None
        self.extreme_at: int | None = None

    def state(self) -> dict[str, Any]:
        kept = ("lowest", "highest", "extreme_at")
        return {"args": {"cell": self.cell}, "attributes": {name: getattr(self, name) for name in kept}}

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        found = scale_range(model)
        if found is None:
            return
        low, high = found
        self.lowest = low if self.lowest is None else min(self.lowest, low)
        self.highest = high if self.highest is None else max(self.highest, high)
        if self.extreme_at is None and not (USUAL[0] <= low and high <= USUAL[1]):
            self.extreme_at = state.global_step
            if ranks.rank() == 0:
                print(
                    f"{self.cell}: z^k reaches from {low:.3g} to {high:.3g} at step {state.global_step}, outside "
                    f"{USUAL[0]:g} to {USUAL[1]:g}; a lower training.learning_rate or method.degree keeps it near 1",
                    file=sys.stderr,
                )

    def as_record(self) -> dict[str, Any] | None:
        """For the record; None where nothing is scaled."""
        if self.lowest is None:
            return None
        return {"lowest": self.lowest, "highest": self.highest, "extreme_at": self.extreme_at}
