"""A cell's weights beside its record: which rules are kept (`training.keep_weights`), and when they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from baselines import Partition, in_head
from propulsion.harness import ranks, record
from propulsion.harness.errors import UserError
from propulsion.harness.kept import BEST, LAST, rules_kept, weights_path
from propulsion.harness.settings import Settings
from propulsion.harness.weights import BestWeights, keep, tensor_names


def kept_names(settings: Settings, model: nn.Module, parts: Partition) -> list[str]:
    """The tensors that a file of kept weights holds: what is trained, and the head in any case."""
    head = [name for name, _ in model.named_parameters() if in_head(name, settings.backbone.head)]
    return tensor_names(model, [*parts.adapter, *parts.head], head)


def _rules(settings: Settings, model: nn.Module) -> tuple[str, ...]:
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return rules_kept(settings.training.keep_weights, size)


def best_weights(settings: Settings, model: nn.Module, parts: Partition, folder: Path) -> list[BestWeights]:
    """The callback that keeps the best evaluation's weights, where they are to be kept."""
    if BEST not in _rules(settings, model):
        return []
    names = kept_names(settings, model, parts)
    return [BestWeights(folder, names, settings.task.primary, settings.training.best_by)]


def keep_weights(
    settings: Settings, model: nn.Module, parts: Partition, entry: dict[str, Any], best: BestWeights | None = None
) -> None:
    """Put the trained tensors of a run that ended well beside its record, which gets their digests.

    Raises:
        UserError: the disk does not take them. The checkpoint stays, so that little is lost.
    """
    rules, step = _rules(settings, model), entry["eval"]["best_step"]
    if not rules or entry["status"] != record.SUCCESS or ranks.rank() > 0:
        return
    try:
        entry["run"]["kept"] = keep(
            model,
            kept_names(settings, model, parts),
            rules,
            best.path(step) if best else None,
            weights_path(settings.results_dir, entry["key"]).parent,
            {LAST: entry["cost"]["steps"], BEST: step},
        )
    except OSError as error:
        raise UserError(
            f"the weights of {settings.cell} cannot be written ({error.strerror}); make room, or set "
            "training.keep_weights=none, and type the same command again: the cell goes on from its last checkpoint"
        ) from error
