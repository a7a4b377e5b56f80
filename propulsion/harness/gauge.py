"""Effective parameters: how many of a method's parameters a model can tell apart from its outputs.

In attention, feature i of a head enters the scores only in the product of the query's and the key's i-th features.
With scales on both, `(q_i s_i) (k_i t_i)` depends on `s_i t_i` alone: a factor moved from s_i to t_i changes no output.
It is exact, biases included, since the scale acts on the layer's whole output. Of the 2 d scales of a layer's queries
and keys d are redundant. In detail:

- BERT, RoBERTa, GPT-2: the score is a plain inner product, d are redundant. DeBERTa's queries meet position keys as
  well, but those pass through the same key layer: still d.
- Rotary positions (LLaMA) mix the two features of a pair between scale and product, so that both need the same
  factor: half of them. With grouped keys the factor of one key feature moves into all its queries: what counts is the
  number of key features.
- Values have no partner: nothing scales the input of the output projection. Between the feed-forward layers stands a
  nonlinearity. What a trained head could undo is the head's own freedom, not a redundancy of the scales.
- The sum of the embeddings goes into a layer norm, which does not see a common factor of all of them (but for its
  epsilon): one scale of the model, where every embedding has one.
- Several vectors a layer pool to one: they count as one.
- LoRA has the like: `B A = (B M) (M^-1 A)` for every invertible M, so that r^2 of each adapted matrix are redundant; of
  DoRA as well, whose directions are W + B A. With B or A in n blocks (BD-LoRA), M is n blocks of r / n: r^2 / n. With B
  frozen (MiCA) there is no M.
- AdaLoRA's P diag(E) Q has, beside these r^2, the r factors that move between E and P.

Of other methods no number is given: theirs may have redundancies of their own, such as the key's bias, which softmax
does not see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.ia3.layer import IA3Layer
from peft.tuners.lora import variants
from peft.tuners.lora.layer import LoraLayer, MultiheadAttention, ParamWrapper
from torch import nn

from propulsion.tuner.layer import Embedding, PropulsionLayer
from propulsion.tuner.targets import ATTENTION_NAMES

SPLIT = ("c_attn",)  # queries, keys and values of one width in one layer
# Variants of LoRA that the rule holds for; VeLoRA differs in its backward pass alone.
LORA_VARIANTS = (
    *(type(None), variants.DoraLinearVariant, variants.VeloraLinearVariant),
    *(variants.BdLoraLinearVariant, variants.MiCALinearVariant),
)
OWN = ("propulsion_z.", "lora_", "ia3_l.")  # parameters of a layer that are an adapter's


@dataclass(frozen=True)
class Gauge:
    """Redundant parameters of a tuned model, by where they come from."""

    vectors: int = 0  # more vectors than one a layer
    query_key: int = 0  # a query's scale and its key's
    norm: int = 0  # the common factor before the embeddings' layer norm
    low_rank: int = 0  # LoRA's choice of basis, AdaLoRA's factors

    @property
    def redundant(self) -> int:
        """All of them: trained parameters less these are the effective ones."""
        return self.vectors + self.query_key + self.norm + self.low_rank


def gauge(model: nn.Module, adapter: str = "default") -> Gauge:
    """What is redundant in one adapter of Propulsion, LoRA or AdaLoRA; of other methods ask `has_rule` first."""
    scaled = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, PropulsionLayer) and adapter in layer.propulsion_z
    }
    adapted = [m for m in model.modules() if isinstance(m, LoraLayer) and adapter in m.r]
    return Gauge(
        vectors=sum(layer.propulsion_z[adapter].numel() - layer.width for layer in scaled.values()),
        query_key=_query_key(model, scaled),
        norm=_before_norm(model, scaled),
        low_rank=sum(_low_rank(layer, adapter) for layer in adapted),
    )


def has_rule(model: nn.Module, names: Iterable[str], adapter: str = "default") -> bool:
    """Whether `gauge` knows all that is redundant in the parameters `names`, which one adapter trains."""
    covered = {
        f"{path}.{name}"
        for path, layer in model.named_modules()
        if _is_covered(layer, adapter)
        for name, _ in layer.named_parameters()
        if name.startswith(OWN)
    }
    return covered.issuperset(names)


def _is_covered(layer: nn.Module, adapter: str) -> bool:
    if isinstance(layer, LoraLayer) and adapter in layer.r:
        if isinstance(layer, (MultiheadAttention, ParamWrapper)):
            return False
        widths: Any = (layer.in_features, layer.out_features)
        low = layer.r[adapter] < min(widths)  # from a full rank on, more is redundant
        return low and type(layer.lora_variant.get(adapter)) in LORA_VARIANTS and _factors(layer, adapter)[0].dim() == 2
    return isinstance(layer, (PropulsionLayer, IA3Layer))


def _low_rank(layer: LoraLayer, adapter: str) -> int:
    """B's columns by A's rows, one block at a time, where both are trained."""
    if not all(factor.requires_grad for factor in _factors(layer, adapter)):
        return 0
    blocks = max(getattr(table[adapter], "nblocks", 1) for table in _tables(layer, adapter))
    rank = int(layer.r[adapter])
    return rank**2 // blocks + (rank if isinstance(layer, AdaLoraLayer) else 0)


def _tables(layer: LoraLayer, adapter: str) -> tuple[Any, Any]:
    """Where a layer keeps A and B, of all adapters."""
    if adapter in layer.lora_A:
        return layer.lora_A, layer.lora_B
    return layer.lora_embedding_A, layer.lora_embedding_B


def _factors(layer: LoraLayer, adapter: str) -> list[nn.Parameter]:
    """A and B, which are modules of their own or bare parameters."""
    return [getattr(table[adapter], "weight", table[adapter]) for table in _tables(layer, adapter)]


def _query_key(model: nn.Module, scaled: dict[str, PropulsionLayer]) -> int:
    blocks: dict[str, dict[str, int]] = defaultdict(dict)
    split = 0
    for name, layer in scaled.items():
        block, _, last = name.rpartition(".")
        for role in ("query", "key"):
            if last in ATTENTION_NAMES[role]:
                blocks[block][role] = layer.width
        split += layer.width // 3 if last in SPLIT else 0
    shared = split + sum(min(own.values()) for own in blocks.values() if len(own) == 2)
    config: Any = getattr(model, "config", None)
    rotary = any(hasattr(config, name) for name in ("rope_theta", "rope_parameters", "rope_scaling"))
    return shared // 2 if rotary else shared


def _before_norm(model: nn.Module, scaled: dict[str, PropulsionLayer]) -> int:
    """1 where all embeddings that go straight into a layer norm are scaled; else 0."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        tables = [key for key, child in children.items() if isinstance(child, (nn.Embedding, Embedding))]
        normed = any(isinstance(child, nn.LayerNorm) and key == "LayerNorm" for key, child in children.items())
        if normed and tables:
            return int(all(f"{name}.{key}" in scaled for key in tables))
    return 0
