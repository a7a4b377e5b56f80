"""Large frozen backbones over several processes: `training.fsdp=full_shard`, or an FSDP config of accelerate's.

What is frozen, nearly all of a model, is cut among the processes by FSDP2 and gathered block by block. What is trained
(z, other adapters) and the head are a few megabytes: every process has all of it, and DDP, which accelerate puts round
the model, sums its gradients. So optimizer, clipping, checkpoints and kept weights see ordinary tensors, as with DDP.

accelerate's own FSDP plugin is not used: it has no CPU path, where this is tested, and wants one rule for frozen and
trained weights alike. What its configuration says is heeded all the same (`launched`).
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from baselines import in_head
from propulsion.harness import checkpoints, ranks
from propulsion.harness.errors import UserError
from propulsion.harness.launched import launch
from propulsion.harness.settings import Settings, TrainingSpec

FULL_SHARD = "full_shard"


def wanted(spec: TrainingSpec) -> bool:
    """Whether the frozen weights are to be cut, by the setting or, where it is `auto`, by accelerate's config."""
    return spec.fsdp == FULL_SHARD or (spec.fsdp == "auto" and launch().shards)


def check(settings: Settings) -> None:
    """Refuse what cannot be sharded, before a model is loaded; say so where the setting and accelerate disagree.

    Raises:
        UserError: one process, a method that freezes nothing, quantized weights, fused layers, an accelerate config
            that says FSDP where the setting says `off`.
    """
    spec, told = settings.training, launch()
    if told.shards and spec.fsdp == "off":
        raise UserError("accelerate's configuration says FSDP and training.fsdp=off: leave one of the two out")
    if not wanted(spec):
        return
    key = f"training.fsdp={spec.fsdp}" if spec.fsdp == FULL_SHARD else "accelerate's FSDP"
    if ranks.size() == 1:
        raise UserError(f"{key} needs several processes: torchrun --nproc-per-node=2 -m scripts.run ...")
    if settings.method.apply == "full":
        raise UserError(
            f"{key} cuts frozen weights and keeps what is trained whole on every process; method "
            f"{settings.method.name} freezes nothing: use training.fsdp=off"
        )
    if settings.backbone.quantize != "none":
        raise UserError(f"{key} cannot cut quantized weights: use backbone.quantize=none, or training.fsdp=off")
    if settings.training.fast_path != "off":
        raise UserError(f"{key} gathers the weights of ordinary layers: use training.fast_path=off")
    if told.by_accelerate and not told.shards and ranks.rank() == 0:
        print(f"{key}: weights are cut, though accelerate's configuration does not say FSDP", file=sys.stderr)


def shard(model: Any, head: list[str]) -> int:
    """Cut the frozen weights among the processes, block by block; each moves to its device as it is cut.

    Returns:
        How many parameters are cut, counted as in the whole model.

    Raises:
        UserError: accelerate's config names blocks that the model does not have.
    """
    checkpoints.remember_frozen(model)
    ranks.join()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (ranks.size(),))
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    whole = {p for name, p in model.named_parameters() if p.requires_grad or in_head(name, head)}
    told = launch()
    names = set(told.blocks or base._no_split_modules or ())
    blocks = [module for module in base.modules() if type(module).__name__ in names]
    if told.blocks and not blocks:
        raise UserError(f"accelerate's fsdp_transformer_layer_cls_to_wrap: {type(base).__name__} has none of these")
    for module in (*blocks, base):
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=told.reshards)
    model.to(kind)  # what every process has whole
    cut = {name: parameter.numel() for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(cut))
    return sum(cut.values())
