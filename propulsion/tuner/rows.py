"""Batches whose rows use different adapters: `model(**batch, adapter_names=["a", "b", "__base__"])`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from propulsion.tuner.layer import BASE, PropulsionLayer


@contextmanager
def adapters_by_row(model: nn.Module, adapter_names: Any, num_beams: Any = None) -> Iterator[None]:
    """Within it every scaled layer, and every module trained whole, takes each row's own adapter.

    Args:
        model: The tuner's model.
        adapter_names: One name for each row of the batch; `"__base__"` for the base model alone.
        num_beams: Of a beam search, which repeats each row that many times in the decoder.

    Raises:
        ValueError: In training, while merged, for an unknown name, or where a scaled layer has no axis of rows.
        TypeError: `adapter_names` is not a list.
    """
    _check(model, adapter_names)
    names = list(adapter_names)
    beams = num_beams if isinstance(num_beams, int) else 1
    encoder = _encoder_modules(model) if beams > 1 else set()
    handles = []
    try:
        for module in model.modules():
            if isinstance(module, (PropulsionLayer, AuxiliaryTrainingWrapper)):
                own = names if module in encoder else [name for name in names for _ in range(beams)]
                hook = partial(_hand_over, adapter_names=own)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hand_over(module: nn.Module, args: Any, kwargs: Any, adapter_names: Sequence[str]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _check(model: nn.Module, adapter_names: Any) -> None:
    if not isinstance(adapter_names, (list, tuple)):
        raise TypeError(f"adapter_names is a list with one name for each row, not a {type(adapter_names).__name__}")
    if model.training:
        raise ValueError("adapter_names are for inference: call model.eval() first")
    known: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, PropulsionLayer):
            continue
        known |= set(module.propulsion_z)
        if module.merged:
            raise ValueError("adapter_names cannot be used while an adapter is merged: unmerge it first")
        if name.endswith("relative_attention_bias"):
            raise ValueError(
                f"{name} gives one bias for the whole batch, so its rows cannot differ: "
                "train without it (exclude_modules) to use adapter_names"
            )
    missing = sorted(set(adapter_names) - known - {BASE})
    if missing:
        raise ValueError(f"no adapter is named {', '.join(missing)}; there are {', '.join(sorted(known))} and {BASE}")


def _encoder_modules(model: nn.Module) -> set[nn.Module]:
    """The modules of the encoder of an encoder-decoder model, which sees every row once; none for other models."""
    base: Any = getattr(model, "model", model)
    encoder = base.get_encoder() if hasattr(base, "get_encoder") else None
    return set() if encoder is None or encoder is base else set(encoder.modules())
