"""Which parameters a method trains, and exactly how many: adapter and head apart, nothing twice."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

PEFT_PREFIXES = ("base_model.model.", "base_model.", "")  # of a tuner's model, of a prompt's, of a plain one


@dataclass(frozen=True)
class Partition:
    """Names of the trainable parameters: in the backbone (or wrapped round it), and in the head."""

    adapter: tuple[str, ...]
    head: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters. `trainable` = adapter + head; `total` is the tuned model's own size."""

    adapter: int
    head: int
    trainable: int
    total: int


def in_head(name: str, head: list[str]) -> bool:
    """Whether a parameter lies in one of the modules of the classification head."""
    return name.startswith(tuple(f"{prefix}{module}." for prefix in PEFT_PREFIXES for module in head))


def partition(model: nn.Module, head: list[str], head_trained: bool) -> Partition:
    """The trainable parameters by name.

    What a method puts on the head counts as adapter, and with a frozen head all that it trains there.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)  # of peft's parameters: "lora_"
    added = f".{prefix}" if prefix else "."
    own_head = tuple(n for n in names if head_trained and in_head(n, head) and not (prefix and added in n))
    return Partition(tuple(name for name in names if name not in own_head), own_head)


def count(model: nn.Module, parts: Partition) -> Counts:
    """Count by name. peft keeps a frozen copy of a saved module (`original_module`): not counted again."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    adapter = sum(sizes[name] for name in parts.adapter)
    head = sum(sizes[name] for name in parts.head)
    total = sum(size for name, size in sizes.items() if ".original_module." not in name)
    return Counts(adapter, head, adapter + head, total)
