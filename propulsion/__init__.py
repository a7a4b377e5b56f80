"""Propulsion: fine-tune a frozen model by scaling the outputs of its layers.

Importing this package makes `PROPULSION` known to peft, so that `get_peft_model` takes a `PropulsionConfig`
and `PeftModel.from_pretrained` loads a saved adapter.
"""

from propulsion.fast import fast_path, plain_path
from propulsion.tuner import PropulsionConfig, PropulsionModel

__all__ = ["PropulsionConfig", "PropulsionModel", "fast_path", "plain_path"]
