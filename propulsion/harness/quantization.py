"""Frozen backbones in 8 or 4 bits, through bitsandbytes (the extra `quantized`)."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from propulsion.harness.errors import UserError
from propulsion.harness.settings import BackboneSpec


def options(spec: BackboneSpec) -> dict[str, Any]:
    """What `from_pretrained` is told: nothing, or to quantize every linear but the head as it loads.

    4 bits are NF4 with blocks of 64 (arXiv 2305.14314, section 3); products are computed in the backbone's dtype.
    8 bits are LLM.int8() (arXiv 2208.07339), which rounds a layer's inputs to float16 and then to 8 bits.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if spec.quantize == "none":
        return {}
    check_installed(spec)
    if spec.quantize == "8bit":
        # A line for every layer, on its inputs that are rounded to float16: so the format has it.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(spec.head))
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
            llm_int8_skip_modules=list(spec.head),
        )
    return {"quantization_config": config}


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit linears from packing their weights for inference on a CPU.

    bitsandbytes (0.50) does so on processors with bf16 units at the first evaluation, and its product with packed
    weights has no gradient: training that goes on after it would stand still without a word.
    """
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_installed(spec: BackboneSpec) -> None:
    """Refuse a quantized backbone early where it cannot be made.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if spec.quantize != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f'backbone.quantize={spec.quantize} needs bitsandbytes: pip install ".[quantized]"')
