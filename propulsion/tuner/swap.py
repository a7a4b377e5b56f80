"""Put a saved adapter in the place of a loaded one without touching the model's structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import get_peft_model_state_dict, load_peft_weights

from propulsion.tuner.config import PropulsionConfig
from propulsion.tuner.layer import PropulsionLayer


def hotswap_adapter(model: Any, model_id: str | Path, adapter_name: str = "default", **hub: Any) -> None:
    """Copies a saved adapter into the tensors of a loaded one: same parameters, new numbers, the same name.

    A compiled model is not compiled again, unless the degree is another. peft's own
    `peft.utils.hotswap.hotswap_adapter` takes LoRA alone.

    Args:
        model: A `PeftModel`, compiled or not.
        model_id: A folder written by `save_pretrained`, or a hub id.
        adapter_name: The loaded adapter that is overwritten.
        hub: `revision`, `subfolder`, `token` and the like.

    Raises:
        ValueError: No such adapter is loaded, it is merged, or one of both is no Propulsion adapter.
        RuntimeError: The saved adapter scales or saves what the loaded one does not, or in other shapes; a scaled
            layer that the saved one leaves alone is set to the neutral 1. Nothing was changed.
    """
    model = getattr(model, "_orig_mod", model)
    config = _compatible(model, str(model_id), adapter_name, hub)
    layers = [m for m in model.modules() if isinstance(m, PropulsionLayer) and adapter_name in m.propulsion_z]
    if any(adapter_name in layer.merged_adapters for layer in layers):
        raise ValueError(f"adapter {adapter_name!r} is merged: call unmerge_adapter() first")
    loaded = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    saved = load_peft_weights(str(model_id), device="cpu", **hub)
    _check_fit(loaded, saved)
    with torch.no_grad():
        for name, tensor in loaded.items():
            if name in saved:
                tensor.copy_(saved[name])
            else:
                tensor.fill_(1.0)
    for layer in layers:
        if layer.degree[adapter_name] != config.degree:
            layer.degree[adapter_name] = config.degree
    model.peft_config[adapter_name].degree = config.degree


def _compatible(model: Any, model_id: str, adapter_name: str, hub: dict[str, Any]) -> PropulsionConfig:
    known = getattr(model, "peft_config", {})
    if adapter_name not in known:
        raise ValueError(f"no adapter {adapter_name!r} is loaded; there are {', '.join(sorted(known)) or 'none'}")
    config = PeftConfig.from_pretrained(model_id, **hub)
    for which, found in (("saved", config), ("loaded", known[adapter_name])):
        if not isinstance(found, PropulsionConfig):
            kind = getattr(found.peft_type, "value", found.peft_type)
            raise ValueError(f"the {which} adapter is of {kind}, not PROPULSION")
    assert isinstance(config, PropulsionConfig)
    if config.pooling != known[adapter_name].pooling:
        raise ValueError(f"the saved adapter pools its vectors by {config.pooling}: use load_adapter")
    return config


def _check_fit(loaded: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    unknown = sorted(set(saved) - set(loaded))
    if unknown:
        raise RuntimeError(f"the loaded adapter has no {', '.join(unknown[:3])}: use load_adapter")
    missing = sorted(name for name in set(loaded) - set(saved) if not name.endswith(".propulsion_z"))
    if missing:
        raise RuntimeError(f"the saved adapter has no {', '.join(missing[:3])}: use load_adapter")
    for name, tensor in saved.items():
        if tensor.shape != loaded[name].shape:
            raise RuntimeError(f"{name} is {tuple(tensor.shape)} there and {tuple(loaded[name].shape)} here")
