"""What some methods need beside their parameters, asked of peft and not of a method's name.

Virtual tokens take places of the position table; a start may be computed from data; a budget moves during training; a
merge has to put back a head that is more than one layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import peft
import torch
from peft.tuners.lora import initialize_lora_eva_weights
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from propulsion.harness.errors import UserError

MOST_BATCHES = 500  # of a start that is computed from data: one that has not settled by then never will
DATA_STARTS = {"eva": initialize_lora_eva_weights}  # init_lora_weights -> peft's function

Batches = Collection[dict[str, torch.Tensor]] | DataLoader[Any]


def _config(model: nn.Module) -> Any:
    return model.active_peft_config if isinstance(model, peft.PeftModel) else None


def virtual_tokens(model: nn.Module) -> int:
    """Places of the position table that the method takes before a row's own tokens."""
    config = _config(model)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def merge(model: peft.PeftModel) -> nn.Module:
    """The model with the adapter folded into its weights: peft's `merge_and_unload`, for heads of several layers too.

    peft 0.21 ends the replacement of every module by copying its `weight`, which RoBERTa's head and DeBERTa's pooler,
    trained beside the adapter, do not have.

    Raises:
        ValueError, NotImplementedError, AttributeError, TypeError: the method cannot be merged.
    """
    tuner: Any = model.base_model
    replace = tuner._replace_module

    def replace_any(parent: nn.Module, name: str, new: nn.Module, old: nn.Module) -> None:
        if isinstance(old, AuxiliaryTrainingWrapper):
            setattr(parent, name, new)
        else:
            replace(parent, name, new, old)

    tuner._replace_module = replace_any
    merged: nn.Module = tuner.merge_and_unload()
    return merged


def starts_from_data(model: nn.Module) -> bool:
    """Whether the method's start is computed from training rows (`start_from_data`)."""
    return getattr(_config(model), "init_lora_weights", None) in DATA_STARTS


def start_from_data(model: nn.Module, batches: Batches) -> None:
    """Compute the start of a method that asks for data, on the device that training uses.

    Args:
        batches: inputs without labels, gone through as often as needed.

    Raises:
        UserError: the start has not settled after `MOST_BATCHES` batches, as with fewer rows than its rank.
    """
    if torch.cuda.is_available():
        model.to("cuda")
    start: Any = DATA_STARTS[_config(model).init_lora_weights]
    with torch.no_grad():
        start(
            model,
            _Counted(batches),
            prepare_model_inputs_fn=lambda batch, config: batch["attention_mask"].bool(),
            prepare_layer_inputs_fn=_real_tokens,
            show_progress_bar=False,
        )


def _real_tokens(given: Any, mask: torch.Tensor, name: str) -> torch.Tensor:
    """A layer's inputs `(tokens, d)` at real tokens; all of them where they are no tokens of the batch.

    DeBERTa puts its relative positions through the queries' matrix as well, which peft's own function cannot index.
    """
    inputs: torch.Tensor = given if isinstance(given, torch.Tensor) else given[0]
    return inputs[mask] if inputs.shape[:2] == mask.shape else inputs.flatten(0, -2)


class _Counted:
    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.given = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.batches:
            self.given += 1
            if self.given > MOST_BATCHES:
                raise UserError(
                    f"the method's start has not settled after {MOST_BATCHES} batches of training rows; use fewer "
                    "components (method.peft.r) or a start that needs no data (method=lora, pissa or olora)"
                )
            yield batch


class Budget(TrainerCallback):
    """Hands every step to a tuner that moves its budget while it trains: the own hook of AdaLoRA, and of `use_asa`."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        base: Any = getattr(getattr(model, "module", model), "base_model", None)
        if hasattr(base, "update_and_allocate"):
            base.update_and_allocate(state.global_step)


def resumable(model: nn.Module) -> bool:
    """Whether a checkpoint of what is trained is all that a run needs to go on; without it the cell starts again.

    Not where a budget was moved: its statistics are in no parameter. AdaMSS moves none without `use_asa`.
    """
    moves = hasattr(getattr(model, "base_model", None), "update_and_allocate")
    return not moves or not getattr(_config(model), "use_asa", True)
