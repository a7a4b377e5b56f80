"""Propulsion as a peft method: config, layers, model, and the entries in peft's tables."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from propulsion.tuner.config import PEFT_TYPE, PropulsionConfig
from propulsion.tuner.dequantize import merge_dequantized
from propulsion.tuner.layer import Conv1D, Embedding, Linear, PropulsionLayer, scale_output
from propulsion.tuner.model import PropulsionModel
from propulsion.tuner.swap import hotswap_adapter
from propulsion.tuner.targets import GROUPS, resolve_targets

__all__ = [
    "GROUPS",
    "Conv1D",
    "Embedding",
    "Linear",
    "PropulsionConfig",
    "PropulsionLayer",
    "PropulsionModel",
    "hotswap_adapter",
    "merge_dequantized",
    "resolve_targets",
    "scale_output",
]


def _register() -> None:
    """Enters the method into peft's tables; doing it again changes nothing.

    `peft.utils.register_peft_method` refuses a name outside peft's own enum; the tables take a plain string.
    """
    tables: list[tuple[dict[Any, Any], Any]] = [
        (PEFT_TYPE_TO_CONFIG_MAPPING, PropulsionConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, PropulsionModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, PropulsionModel.prefix),
    ]
    for table, entry in tables:
        table[PEFT_TYPE] = entry


_register()
