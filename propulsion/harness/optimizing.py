"""What the optimizer gets: groups of trained parameters by learning rate and weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from baselines import Partition
from propulsion.harness.settings import TrainingSpec


def parameter_groups(model: nn.Module, parts: Partition, spec: TrainingSpec) -> list[dict[str, Any]]:
    """Optimizer groups by learning rate and weight decay.

    Vectors are not decayed unless `spec.decay_vectors` says so: biases, norms, and scales such as z, which decay
    would pull to 0 instead of to their neutral value 1.
    """
    head_rate = spec.learning_rate if spec.head_learning_rate is None else spec.head_learning_rate
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for names, rate in ((parts.adapter, spec.learning_rate), (parts.head, head_rate)):
        for decayed in (True, False):
            chosen = [
                parameters[name] for name in names if (spec.decay_vectors or decays(name, parameters[name])) == decayed
            ]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": spec.weight_decay if decayed else 0.0})
    return groups


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay is for this parameter: a matrix, and no stack of vectors such as several z of a layer."""
    return is_matrix(parameter) and ".propulsion_z." not in name


def is_matrix(parameter: torch.Tensor) -> bool:
    """False for vectors, also for those stored with an axis of length one, as IA3's are."""
    return parameter.ndim >= 2 and min(parameter.shape) > 1
