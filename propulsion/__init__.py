"""Propulsion: fine-tune a frozen model by scaling the outputs of its layers.

Importing this package makes `PROPULSION` known to peft, so that `get_peft_model` takes a `PropulsionConfig`
and `PeftModel.from_pretrained` loads a saved adapter. It imports neither torch nor peft before they are needed: a sweep
whose cells are all done needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from propulsion import registration

if TYPE_CHECKING:
    from propulsion.fast import fast_path, plain_path
    from propulsion.tuner import PropulsionConfig, PropulsionModel, hotswap_adapter

__all__ = ["PropulsionConfig", "PropulsionModel", "fast_path", "hotswap_adapter", "plain_path"]

_HOMES = {
    "PropulsionConfig": "propulsion.tuner",
    "PropulsionModel": "propulsion.tuner",
    "fast_path": "propulsion.fast",
    "hotswap_adapter": "propulsion.tuner",
    "plain_path": "propulsion.fast",
}
registration.with_peft()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
