"""Merging into a quantized model: into a copy of its weights in full, on request."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn

QUANTIZED_WEIGHTS = ("Params4bit", "Int8Params")


def merge_dequantized(model: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """A quantized model with Propulsion on it as an ordinary one, the scales in its weights.

    `merge_and_unload` refuses a quantized layer: rounded to 8 or 4 bits again, a scale of 0.99 would be lost. Here
    every quantized layer, scaled or not, is first replaced by an ordinary one with its dequantized weight, so that
    the result is two to eight times as large. `model` itself is used up.

    Args:
        model: a `PeftModel` of Propulsion. Its quantized linears are those of bitsandbytes.
        dtype: of the new weights; None for that of the layer's bias or, without one, of the rest of the model.

    Returns:
        The merged base model; its config no longer says that it is quantized.

    Raises:
        ValueError: a layer cannot be merged for another reason.
    """
    floats = [p.dtype for name, p in model.named_parameters() if p.is_floating_point() and not p.requires_grad]
    chosen = dtype or (floats[0] if floats else torch.float32)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if is_quantized(layer):
                setattr(parent, name, _ordinary(layer, chosen))
    merged: nn.Module = model.merge_and_unload()
    _forget_quantization(merged)
    return merged


def is_quantized(layer: nn.Module) -> bool:
    """Whether the layer is a linear of bitsandbytes; an adapter's layer around one is not."""
    kind = type(getattr(layer, "weight", None)).__name__
    return not isinstance(layer, BaseTunerLayer) and hasattr(layer, "in_features") and kind in QUANTIZED_WEIGHTS


def _ordinary(layer: Any, dtype: torch.dtype) -> nn.Linear:
    layer.state_dict()  # unpacks a 4-bit weight that bitsandbytes has laid out for inference on a CPU
    with torch.no_grad():
        weight = dequantize_module_weight(layer).to(dtype)
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, weight.device, dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    return linear


def _forget_quantization(model: Any) -> None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for name in ("is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit"):
        if getattr(model, name, False):
            setattr(model, name, False)
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
