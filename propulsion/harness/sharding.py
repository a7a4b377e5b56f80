"""Large frozen backbones over several processes: `training.fsdp=full_shard`.

What is frozen, nearly all of a model, is cut among the processes by FSDP2 and gathered block by block. What is trained
(z, other adapters) and the head are a few megabytes: every process has all of it, and DDP, which accelerate puts round
the model, sums its gradients. So optimizer, clipping, checkpoints and kept weights see ordinary tensors, as with DDP.

accelerate's own FSDP plugin is not used: it has no CPU path, where this is tested, and wants one rule for frozen and
trained weights alike.
"""

from __future__ import annotations

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
from propulsion.harness.settings import Settings


def check(settings: Settings) -> None:
    """Refuse what cannot be sharded, before a model is loaded.

    Raises:
        UserError: one process, a method that freezes nothing, quantized weights, fused layers.
    """
    if settings.training.fsdp == "off":
        return
    key = f"training.fsdp={settings.training.fsdp}"
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


def shard(model: Any, head: list[str]) -> int:
    """Cut the frozen weights among the processes, block by block; each moves to its device as it is cut.

    Returns:
        How many parameters are cut, counted as in the whole model.
    """
    checkpoints.remember_frozen(model)
    ranks.join()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (ranks.size(),))
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    whole = {p for name, p in model.named_parameters() if p.requires_grad or in_head(name, head)}
    blocks = set(base._no_split_modules or ())
    for module in base.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, ignored_params=whole)
    fully_shard(base, mesh=mesh, ignored_params=whole)
    model.to(kind)  # what every process has whole
    cut = {name: parameter.numel() for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(cut))
    return sum(cut.values())
