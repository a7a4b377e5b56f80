"""A tuned model that answers: token ids in, logits out, in the run's own length and precision."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from baselines.hooks import merge
from propulsion.harness.assembly import row_length
from propulsion.harness.encode import encode
from propulsion.harness.errors import UserError
from propulsion.harness.settings import Settings, TaskSpec

NOT_INPUT = ("labels", "length")  # columns of encoded rows that no model takes


@dataclass
class Classifier:
    """Tokenizer and model, in eval mode on their device. `precision` is that of the run's record."""

    name: str
    settings: Settings
    tokenizer: PreTrainedTokenizerBase
    model: Any
    precision: str | None = None

    def encoded(self, rows: Dataset, task: TaskSpec | None = None) -> Dataset:
        """Rows with the columns of a task (the model's own if none is given) and `label`, as token ids."""
        return encode(rows, self.tokenizer, task or self.settings.task, row_length(self.settings, self.model))

    def logits(self, encoded: Dataset) -> np.ndarray:
        """(n, classes) or (n, 1) in the order of the rows; the run's own evaluations may have merged z.

        Raises:
            UserError: the model gives numbers that are not finite.
        """
        order = np.argsort(np.asarray(encoded[:]["length"]), kind="stable")  # batches of rows of like length
        inputs = encoded.remove_columns([name for name in NOT_INPUT if name in encoded.column_names])
        collate = DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=8 if torch.cuda.is_available() else None)
        size = self.settings.training.eval_batch_size
        found = []
        for start in range(0, len(order), size):
            chosen = inputs.select(order[start : start + size])
            batch: Any = collate([chosen[i] for i in range(len(chosen))])
            with torch.no_grad(), self._autocast():
                found.append(self.model(**batch.to(self.model.device)).logits.float().cpu().numpy())
        logits = np.concatenate(found).astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(f"{self.name}: the model gives numbers that are not finite; choose another run")
        back = np.empty_like(logits)
        back[order] = logits
        return back

    def merge(self, asked: str = "merge=true") -> None:
        """Fold the adapter into the backbone's weights: same answers to rounding, no cost.

        Raises:
            UserError: there is no adapter, or it cannot be merged.
        """
        if not isinstance(self.model, PeftModel) or not hasattr(self.model, "merge_and_unload"):
            raise UserError(f"{self.name} has no adapter to merge: leave {asked} out")
        try:
            self.model = merge(self.model).eval()
        except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.name} cannot be merged ({reason}): leave {asked} out") from error

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(self.precision))
        return torch.autocast(self.model.device.type, dtype=dtype) if dtype else contextlib.nullcontext()
