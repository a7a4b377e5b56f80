"""Which numbers make sense in a training: one clear line for those that do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from propulsion.harness.errors import UserError

if TYPE_CHECKING:
    from propulsion.harness.settings import TrainingSpec


@dataclass(frozen=True)
class Range:
    """`low <= value < high`, in words."""

    words: str
    low: float
    high: float = math.inf

    def holds(self, value: float) -> bool:
        """False for what is no number, too."""
        return self.low <= value < self.high


COUNT, AMOUNT = Range("1 or more", 1), Range("a finite number, 0 or more", 0)
RANGES = {
    **dict.fromkeys(("batch_size", "eval_batch_size", "accumulation", "evaluations", "max_length"), COUNT),
    **dict.fromkeys(("max_train_rows", "max_eval_rows", "eval_steps"), Range("1 or more, or null", 1)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "checkpoint_seconds"), AMOUNT),
    "head_learning_rate": Range("a finite number, 0 or more, or null for the rate of the rest", 0),
    "warmup_ratio": Range("0 or more and below 1; for a number of steps, use training.warmup_steps", 0, 1),
    "warmup_steps": Range("0 or more, or null for the ratio", 0),
    "dropout": Range("0 or more and below 1, or null for the backbone's own", 0, 1),
}


def check_numbers(spec: TrainingSpec) -> None:
    """Refuse a number that no training can have meant.

    Raises:
        UserError: the key, its value, and what it must be.
    """
    for key, allowed in RANGES.items():
        value = getattr(spec, key)
        if value is not None and not allowed.holds(value):
            raise UserError(f"training.{key}={value}: must be {allowed.words}")
    if spec.max_steps < 1 and spec.max_steps != -1:
        raise UserError(f"training.max_steps={spec.max_steps}: must be 1 or more, or -1 for training.epochs")
    if spec.max_steps < 1 and not 0 < spec.epochs < math.inf:
        raise UserError(f"training.epochs={spec.epochs}: must be a finite number above 0, or set training.max_steps")
