"""Memory: activations computed again instead of kept; what does not fit is tried again in smaller pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from peft import PeftModel, PeftType

from propulsion.harness import ranks
from propulsion.harness.errors import UserError
from propulsion.harness.settings import TrainingSpec


def checkpoint_activations(model: Any) -> None:
    """Let every block of the backbone keep its input alone, and compute the rest again in the backward pass.

    Not the reentrant kind, which would lose the gradients of all that is trained in a block whose input, as that of a
    frozen embedding, needs none. Random numbers are drawn again as they were: same losses, same gradients.

    Raises:
        UserError: prefix tuning, whose keys and values transformers drops where activations are computed again.
    """
    prompt = model.active_peft_config if isinstance(model, PeftModel) else None
    if prompt is not None and prompt.peft_type == PeftType.PREFIX_TUNING:
        raise UserError(
            "training.gradient_checkpointing=true: not with prefix tuning, which transformers then leaves out"
        )
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if hasattr(base, "activation_checkpointing_enable"):  # transformers 5.2x renamed it
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class TooLarge(Exception):
    """Training ran out of memory; `reason` is the first line of the allocator's message."""

    def __init__(self, error: Exception) -> None:
        self.reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        super().__init__(self.reason)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator, of the device, of torch on a CPU or of Python, had no memory left."""
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def guarded(action: Callable[[], Any]) -> Any:
    """The action's result, `TooLarge` where it ran out of memory.

    The error itself is not kept: its frames hold the tensors that the next try needs the memory of.

    Raises:
        TooLarge: it did, in a run of one process. With several, the others wait inside the same step.
    """
    try:
        return action()
    except Exception as error:
        if ranks.size() > 1 or not is_out_of_memory(error):
            raise
        too_large = TooLarge(error)
    raise too_large


def smaller(spec: TrainingSpec) -> TrainingSpec | None:
    """The same training in half the micro-batch (or the next part that divides it) and as much more accumulation.

    Where a micro-batch is one row already, evaluation may be what does not fit: row by row as well, and then None.
    """
    parts = next((n for n in range(2, spec.batch_size + 1) if spec.batch_size % n == 0), None)
    if parts is None:
        return replace(spec, eval_batch_size=1) if spec.eval_batch_size > 1 else None
    return replace(
        spec,
        batch_size=spec.batch_size // parts,
        accumulation=spec.accumulation * parts,
        eval_batch_size=max(1, spec.eval_batch_size // 2),
    )
