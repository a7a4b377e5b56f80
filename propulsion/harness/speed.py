"""What saves time and leaves the method alone: the fast path, merging for evaluation, features computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from propulsion.fast import NotFusedError, fast_path, find_path
from propulsion.harness.errors import UserError
from propulsion.harness.settings import TrainingSpec
from propulsion.tuner.layer import Embedding, PropulsionLayer

MERGED_BYTES = 64 << 20  # a second copy of more weights would show in the peak memory that is measured
FEATURES_BYTES = 4 << 30  # above this, further rows are computed anew each time


@dataclass(frozen=True)
class Speed:
    """What a cell trains with. `path` is the word in the record where nothing else was seen."""

    path: str | None
    features: bool


def set_up(model: nn.Module, spec: TrainingSpec) -> Speed:
    """Turn on what the settings ask for.

    Raises:
        UserError: `training.fast_path=on` on a model or with a setting that cannot take it.
    """
    if spec.gradient_checkpointing and spec.fast_path == "on":
        raise UserError(
            "training.gradient_checkpointing=true computes ordinary layers again: with training.fast_path=on use "
            "training.lean=true"
        )
    features = spec.cache_features and cache_features(model)
    if spec.fast_path == "off" or features:
        return Speed(None, features)
    if spec.gradient_checkpointing:
        return Speed("plain: activations are checkpointed", features)
    if spec.fast_path == "auto" and torch.cuda.is_available():
        return Speed("plain: not measured on CUDA; training.fast_path=on turns it on", features)
    try:
        fast_path(model, lean=spec.lean)
    except NotFusedError as error:
        if spec.fast_path == "on":
            raise UserError(f"training.fast_path=on: {error}; use training.fast_path=auto") from error
        return Speed(f"plain: {error}", features)
    return Speed("fused", features)


def path_taken(model: nn.Module, speed: Speed) -> str | None:
    """`fused`, `lean`, or `plain: <reason>`, as it was in training; None with the setting off.

    On a GPU with what attention went through: `fused; variable-length attention`.
    """
    path = find_path(model)
    if path is None:
        return speed.path
    if path.plain:
        return f"plain: {path.reason}" if not path.used else f"fused, {path.plain} passes plain: {path.reason}"
    return "; ".join(word for word in ("lean" if path.lean else "fused", path.attention) if word)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Propulsion's scales in the weights of small float32 linear layers, for evaluation; undone to the bit.

    The weights are there twice meanwhile. An embedding is left out: scaling its rows costs less than scaling its table.
    """
    layers = [m for m in model.modules() if isinstance(m, PropulsionLayer) and not isinstance(m, Embedding)]
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    small = sum(weight.nbytes for weight in weights) <= MERGED_BYTES
    if not small or any(weight.dtype != torch.float32 or isinstance(weight, DTensor) for weight in weights):
        layers = []
    try:
        for layer in layers:
            layer.check_mergeable()
    except ValueError:  # quantized, or under another adapter
        layers = []
    layers = [layer for layer in layers if not layer.merged and not layer.disable_adapters]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer in layers:
            if layer.merged:
                layer.unmerge()


def cache_features(model: Any) -> bool:
    """Let a frozen backbone compute every row once, in evaluation mode; False where something in it is trained.

    Its dropout is off then, unlike in training without the cache: a setting of its own in the record.
    """
    backbone = getattr(model, "base_model", model)
    if backbone is model or any(parameter.requires_grad for parameter in backbone.parameters()):
        return False
    backbone.forward = Features(backbone)
    return True


class Features:
    """The forward of a frozen backbone that remembers each row's last hidden states by the row's content."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.known: dict[bytes, torch.Tensor] = {}
        self.bytes = 0
        self.computed = 0

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any
    ) -> BaseModelOutputWithPooling:
        """Last hidden states `(batch, length, d)`, zero at padding."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        given = {name: value for name, value in others.items() if isinstance(value, torch.Tensor)}
        places = mask.bool().cpu()
        columns = [input_ids.cpu(), *(given[name].cpu() for name in sorted(given))]
        keys = [b"|".join(c[i][places[i]].numpy().tobytes() for c in columns) for i in range(len(places))]
        new = {key: row for row, key in enumerate(keys) if key not in self.known}
        fresh: dict[bytes, torch.Tensor] = {}
        if new:
            rows = torch.tensor(list(new.values()), device=input_ids.device)
            hidden = self._compute(input_ids[rows], mask[rows], {name: value[rows] for name, value in given.items()})
            fresh = {key: hidden[n][places[row].to(hidden.device)] for n, (key, row) in enumerate(new.items())}
            self._keep(fresh)
        found = [fresh[key] if key in fresh else self.known[key] for key in keys]
        padded = found[0].new_zeros(*mask.shape, found[0].shape[-1])
        padded[places.to(padded.device)] = torch.cat(found)
        return BaseModelOutputWithPooling(last_hidden_state=padded)

    def _compute(self, ids: torch.Tensor, mask: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
        training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.no_grad():
                output = type(self.backbone).forward(self.backbone, input_ids=ids, attention_mask=mask, **given)
        finally:
            self.backbone.train(training)
        self.computed += len(ids)
        return output.last_hidden_state

    def _keep(self, fresh: dict[bytes, torch.Tensor]) -> None:
        for key, hidden in fresh.items():
            if self.bytes < FEATURES_BYTES:
                self.known[key] = hidden.clone()
                self.bytes += hidden.nbytes
