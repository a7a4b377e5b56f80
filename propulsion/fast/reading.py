"""What the fused layers need to know of an ordinary model: its matrices, its vectors, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.ia3.layer import Linear as IA3Linear
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation
from transformers.models.bert import modeling_bert
from transformers.models.roberta import modeling_roberta
from transformers.utils import output_capturing

from propulsion.tuner.layer import Embedding, Linear

FAMILIES = {modeling_bert.__name__, modeling_roberta.__name__}
GELUS: dict[type, str] = {GELUActivation: "none", nn.GELU: "none", GELUTanh: "tanh", NewGELUActivation: "tanh"}


class NotFusedError(ValueError):
    """Why a model, in the state it is in, cannot take the fused path. One line."""


@dataclass(frozen=True)
class Factor:
    """A trained vector to a power, `z**degree`, `(width,)`."""

    z: torch.Tensor
    degree: int


@dataclass(frozen=True)
class LowRank:
    """LoRA's matrices `(rank, in)` and `(out, rank)`: `scaling * (x inner^T) outer^T` is added to the product."""

    inner: torch.Tensor
    outer: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class Read:
    """A frozen linear or embedding and what is trained on it: `(x * inputs) W^T + b + low(x)) * outputs`.

    `outputs` and `inputs` are products of factors.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    outputs: tuple[Factor, ...] = ()
    inputs: tuple[Factor, ...] = ()
    low: tuple[LowRank, ...] = ()


def read(module: nn.Module) -> Read:
    """A layer as it computes now: disabled and merged adapters do nothing.

    Raises:
        NotFusedError: it is no plain layer with Propulsion, IA3 or LoRA on it, or its matrix is trained.
    """
    base: Any = module
    outputs: tuple[Factor, ...] = ()
    inputs: tuple[Factor, ...] = ()
    low: tuple[LowRank, ...] = ()
    if isinstance(module, (Linear, Embedding, IA3Linear, LoraLinear)):
        base = module.base_layer
        if module.disable_adapters and module.merged:
            module.unmerge()  # as the layer itself would in its forward
        if module.disable_adapters or module.merged:
            pass
        elif isinstance(module, LoraLinear):
            low = _low_rank(module)
        else:
            outputs, inputs = _factors(module)
    if type(base) not in (nn.Linear, nn.Embedding):
        raise NotFusedError(f"it has a layer of type {type(module).__name__}, not linear with Propulsion, IA3 or LoRA")
    if base.weight.requires_grad:
        raise NotFusedError("a matrix of the backbone is trained")
    if isinstance(base, nn.Embedding) and base.max_norm is not None:
        raise NotFusedError("an embedding has a max_norm")
    return Read(base.weight, getattr(base, "bias", None), outputs, inputs, low)


def check_own(module: nn.Module) -> None:
    """Refuses a module on which something acts that the fused path would not call."""
    if "forward" in vars(module):
        raise NotFusedError(f"a {type(module).__name__} has a forward of its own")
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        raise NotFusedError(f"a {type(module).__name__} has hooks, which the fused path would not call")
    # transformers leaves its own where hidden states or attentions were asked for once; they do nothing by themselves
    if any(getattr(hook, "__module__", None) != output_capturing.__name__ for hook in module._forward_hooks.values()):
        raise NotFusedError(f"a {type(module).__name__} has hooks, which the fused path would not call")


def check_family(*modules: nn.Module) -> None:
    """Refuses a part of an encoder whose class is not BERT's or RoBERTa's own."""
    for module in modules:
        if type(module).__module__ not in FAMILIES:
            raise NotFusedError(f"it has a part of type {type(module).__name__}, not BERT's or RoBERTa's own")


def _factors(module: Any) -> tuple[tuple[Factor, ...], tuple[Factor, ...]]:
    """The factors on a layer's output and on its input."""
    if isinstance(module, IA3Linear):
        active = [module.ia3_l[name] for name in module.active_adapters if name in module.ia3_l]
        factors = tuple(Factor(vector.flatten(), 1) for vector in active)
        return ((), factors) if module.is_feedforward else (factors, ())
    zs: Any = module.propulsion_z
    active = [name for name in module.active_adapters if name in zs]
    return tuple(Factor(module.vector(name), module.degree[name]) for name in active), ()


def _low_rank(module: Any) -> tuple[LowRank, ...]:
    """The active LoRA adapters of a layer, where they are LoRA's plain formula."""
    found = []
    for name in (name for name in module.active_adapters if name in module.lora_A):
        inner, outer = module.lora_A[name], module.lora_B[name]
        if name in module.lora_variant or outer.bias is not None or module.fan_in_fan_out:
            raise NotFusedError("a variant of LoRA is on it")
        if module.training and getattr(module.lora_dropout[name], "p", 0.0):
            raise NotFusedError("LoRA's own dropout is on")
        if inner.weight.dtype != module.base_layer.weight.dtype:
            raise NotFusedError("LoRA is of another type than its layer")
        found.append(LowRank(inner.weight, outer.weight, module.scaling[name]))
    return tuple(found)


def low_rank(layers: list[Read]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """One pair of matrices, `(rank, in)` and `(sum of out, rank)`, for layers that lie side by side."""
    inner, outer = [], []
    widths = [layer.weight.shape[0] for layer in layers]
    for index, layer in enumerate(layers):
        above, below = sum(widths[:index]), sum(widths[index + 1 :])
        for low in layer.low:
            inner.append(low.inner)
            outer.append(nn.functional.pad(low.outer * low.scaling, (0, 0, above, below)))
    return (torch.cat(inner), torch.cat(outer, dim=1)) if inner else (None, None)


def check_dropout(*modules: nn.Module) -> None:
    """Refuses what is no dropout, and a rate of 1, whose kept values no factor brings to the right mean."""
    for module in modules:
        if type(module) is not nn.Dropout:
            raise NotFusedError(f"it has {type(module).__name__} in the place of a dropout")
        if module.p >= 1:
            raise NotFusedError("a dropout rate is 1")


def read_norm(norm: nn.Module) -> nn.LayerNorm:
    """A layer norm whose bias alone may be trained."""
    if type(norm) is not nn.LayerNorm or norm.bias is None:
        raise NotFusedError(f"it has a norm of type {type(norm).__name__}")
    if norm.weight.requires_grad:
        raise NotFusedError("the weight of a layer norm is trained")
    return norm


def read_activation(module: Any) -> str:
    """gelu's `approximate`."""
    if type(module) not in GELUS:
        raise NotFusedError(f"its activation is {type(module).__name__}, not gelu")
    return GELUS[type(module)]


def scales(pieces: list[list[tuple[tuple[Factor, ...], int]]]) -> list[torch.Tensor | None]:
    """One scale for every list of layers that lie side by side; None where none of them has a factor.

    `pieces` gives each layer's factors and width. Where all factors have one degree, as with one Propulsion
    adapter, the whole model's z go through one power.

    Raises:
        NotFusedError: a factor of degree 1 is exactly 0, where its gradient needs the unscaled output. To ask that is
            the one wait for a GPU in a pass; higher degrees have none.
    """
    used = [row for row in pieces if any(factors for factors, _ in row)]
    if not used:
        return [None] * len(pieces)
    flat = [piece for row in used for piece in row]
    degrees = {factor.degree for factors, _ in flat for factor in factors}
    first = next(factor.z for factors, _ in flat for factor in factors)
    if len(degrees) == 1 and all(len(factors) <= 1 for factors, _ in flat):
        degree = degrees.pop()
        powers = torch.cat([factors[0].z if factors else first.new_ones(width) for factors, width in flat])
        if degree > 1:
            powers = powers.pow(degree)
    else:
        degree = min(degrees)
        powers = torch.cat([_product(factors, width, first) for factors, width in flat])
    if degree == 1 and bool((powers == 0).any()):
        raise NotFusedError("a scale of degree 1 is exactly 0")
    found = iter(powers.split([sum(width for _, width in row) for row in used]))
    return [next(found) if any(factors for factors, _ in row) else None for row in pieces]


def _product(factors: tuple[Factor, ...], width: int, like: torch.Tensor) -> torch.Tensor:
    result = like.new_ones(width)
    for factor in factors:
        result = result * factor.z.pow(factor.degree)
    return result
