"""Which layers of a model are meant by `target_modules`: names, groups and regexes become module names."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from propulsion.tuner.layer import output_width

if TYPE_CHECKING:
    from propulsion.tuner.config import PropulsionConfig

GROUPS: dict[str, tuple[str, ...]] = {  # group -> the roles of its layers, see `_role`
    "all": ("embeddings", "query", "key", "value", "fused", "mlp", "output", "other"),
    "all-linear": ("query", "key", "value", "fused", "mlp", "other"),  # as in peft: no output embeddings
    "attention": ("query", "key", "value", "fused"),
    "query": ("query",),
    "key": ("key",),
    "value": ("value",),
    "mlp": ("mlp",),
    "embeddings": ("embeddings",),
}

# The last part of a layer's name, for bert, roberta, deberta, distilbert, llama, mistral, qwen, opt, gpt2,
# gpt-neox, falcon, phi, t5, bart and whoever follows them. `fused` is query, key and value in one layer.
ATTENTION_NAMES = {
    "query": ("query", "query_proj", "q_proj", "q_lin", "q_attn"),
    "key": ("key", "key_proj", "k_proj", "k_lin"),
    "value": ("value", "value_proj", "v_proj", "v_lin"),
    "fused": ("c_attn", "query_key_value", "qkv_proj", "qkv", "Wqkv"),
}
# Names that mean something else elsewhere: they count only in a module whose class is some kind of attention.
_SHORT_ATTENTION_NAMES = {"query": ("q",), "key": ("k",), "value": ("v",), "fused": ("in_proj",)}
_MLP_NAMES = (
    *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc", "wi", "wi_0", "wi_1", "wo"),
    *("lin1", "lin2", "ffn_output", "dense_h_to_4h", "dense_4h_to_h"),
)
_MLP_PARENTS = ("mlp", "ffn", "feed_forward", "DenseReluDense")


def resolve_targets(model: nn.Module, config: PropulsionConfig) -> set[str]:
    """The full names of the layers that `config` asks for in `model`.

    A layer that no gradient can reach is left out, with a warning, when only a group or a regex leads to it.

    Raises:
        ValueError: An entry of `target_modules` matches nothing, or nothing is left after the exclusions. The
            message is one line and lists the groups and name endings that the model has.
    """
    layers = wrappable_layers(model)
    named, loose = _match(model, layers, config.target_modules or "all")
    exact = set() if isinstance(config.target_modules, str) else set(config.target_modules or ())
    kept = {name for name in named | loose if _is_kept(config, name, name in exact)}
    if not kept:
        raise ValueError(
            f"every layer of {type(model).__name__} that target_modules matches is taken out again by "
            "exclude_modules, modules_to_save or layers_to_transform"
        )
    dead = {name: reason for name, reason in unreachable_layers(model, layers).items() if name in kept}
    left_out = sorted(set(dead) - named)
    for name in left_out:
        warnings.warn(f"left out {name}, whose z would never get a gradient: {dead[name]}", stacklevel=2)
    for name in sorted(set(dead) & named):
        warnings.warn(f"the z of {name} will never get a gradient: {dead[name]}", stacklevel=2)
    if kept == set(left_out):
        raise ValueError(f"target_modules only matches what no gradient can reach: {', '.join(left_out)}")
    return kept - set(left_out)


def with_namesakes(model: nn.Module, config: PropulsionConfig, found: set[str]) -> Any:
    """`exclude_modules` with those layers whose names end with a found layer's full name.

    `head`, a layer at the top, is also an ending of `block.head`: read from a file, it would bring in both.
    """
    endings = tuple(f".{name}" for name in found)
    others = {name for name in wrappable_layers(model) if name not in found and name.endswith(endings)}
    others = {n for n in others if _is_kept(config, n, True) and not any(_ends_with(kept, n) for kept in found)}
    excluded = config.exclude_modules
    if not others:
        return excluded
    if isinstance(excluded, str):
        return "|".join([f"(?:{excluded})", *(re.escape(name) for name in sorted(others))])
    return {*(excluded or ()), *others}


def wrappable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers this tuner can scale, by full name; the base layer where an adapter is already in place."""
    layers: dict[str, nn.Module] = {}
    closed = ""  # modules come parents first: what lies in a layer or in a module to save is not looked at
    for name, module in model.named_modules():
        if closed and name.startswith(closed):
            continue
        is_adapter = isinstance(module, BaseTunerLayer)
        base = module.get_base_layer() if is_adapter else module
        if output_width(base) is not None:
            layers[name] = base
        if is_adapter or isinstance(module, AuxiliaryTrainingWrapper) or name in layers:
            closed = f"{name}."
    layers.pop("", None)  # a model that is a single layer has no parent to put a scaled layer into
    return layers


def unreachable_layers(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, str]:
    """The layers that a model holds but does not call, so that their z would get no gradient, and why."""
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    reasons = {}
    for name in layers:
        parent_name, _, last = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if last == "rel_embeddings" and hasattr(parent, "get_rel_embedding"):
            reasons[name] = "DeBERTa reads its weight without calling it"
        elif isinstance(parent, nn.MultiheadAttention):
            reasons[name] = "nn.MultiheadAttention reads its weight without calling it"
        elif last == "shared" and isinstance(layers[name], nn.Embedding):
            reasons[name] = "it only lends its weight to the embeddings of encoder and decoder"
        elif uses[id(model.get_submodule(name))] > 1:
            reasons[name] = "the model holds this layer under several names"
    return reasons


def _match(
    model: nn.Module, layers: dict[str, nn.Module], spec: str | set[str] | list[str]
) -> tuple[set[str], set[str]]:
    """The layers that `spec` gives by name, and those that it gives by group or regex."""
    if isinstance(spec, str) and spec not in GROUPS:
        return set(), _match_regex(model, layers, spec)
    named: set[str] = set()
    loose: set[str] = set()
    for entry in [spec] if isinstance(spec, str) else sorted(spec):
        by_name = {name for name in layers if _ends_with(name, entry)}
        by_group = set() if by_name or entry not in GROUPS else _members(model, layers, entry)
        if not by_name and not by_group:
            raise ValueError(_nothing_matches(model, layers, entry))
        named |= by_name
        loose |= by_group
    return named, loose


def _match_regex(model: nn.Module, layers: dict[str, nn.Module], pattern: str) -> set[str]:
    try:
        matched = {name for name in layers if re.fullmatch(pattern, name)}
    except re.error as error:
        raise ValueError(f"target_modules {pattern!r} is no group and no valid regex: {error}") from None
    if not matched:
        hint = f"a string is a regex over whole names, for a name ending give the list ['{pattern}']"
        is_ending = any(_ends_with(name, pattern) for name in layers)
        raise ValueError(_nothing_matches(model, layers, pattern, hint if is_ending else ""))
    return matched


def _members(model: nn.Module, layers: dict[str, nn.Module], group: str) -> set[str]:
    return {name for name in layers if _role(model, name, layers[name]) in GROUPS[group]}


def _role(model: nn.Module, name: str, layer: nn.Module) -> str:
    """What a layer does, told by its type, its name and its parent's class."""
    if isinstance(layer, nn.Embedding):
        return "embeddings"
    if _is_output_embedding(model, layer):
        return "output"
    parent_name, _, last = name.rpartition(".")
    in_attention = "attention" in type(model.get_submodule(parent_name)).__name__.lower()
    for role, names in ATTENTION_NAMES.items():
        if last in names or (in_attention and last in _SHORT_ATTENTION_NAMES[role]):
            return role
    return "mlp" if _is_mlp(name.split(".")) else "other"


def _is_mlp(parts: list[str]) -> bool:
    if parts[-1] in _MLP_NAMES or any(part in _MLP_PARENTS for part in parts):
        return True
    if parts[-1] != "dense" or len(parts) < 3:
        return False
    # bert: `intermediate.dense` and `output.dense`, but not `attention.output.dense`
    return parts[-2] == "intermediate" or (parts[-2] == "output" and "attention" not in parts[-3].lower())


def _is_output_embedding(model: nn.Module, layer: nn.Module) -> bool:
    get_output: Any = getattr(model, "get_output_embeddings", None)
    output = get_output() if get_output is not None else None
    return layer is (output.get_base_layer() if isinstance(output, BaseTunerLayer) else output)


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _is_kept(config: PropulsionConfig, name: str, exact: bool) -> bool:
    """Whether a matched layer survives `exclude_modules`, `modules_to_save` and `layers_to_transform`."""
    last = name.rpartition(".")[2]
    if last == name and not exact and config.layers_to_transform not in (None, []):
        return False  # a layer outside every block
    probe = copy.copy(config)
    # peft looks at layers_to_transform only where a name ending matches, and takes a full name as it stands
    probe.target_modules = {name if exact else last}
    return bool(check_target_module_exists(probe, name))


def _nothing_matches(model: nn.Module, layers: dict[str, nn.Module], entry: str, why: str = "") -> str:
    """One line: what was asked for, why it is not there, and everything that is."""
    endings = sorted({name.rpartition(".")[2] for name in layers})
    groups = [group for group in GROUPS if _members(model, layers, group)]
    fused = sorted(name.rpartition(".")[2] for name in layers if _role(model, name, layers[name]) == "fused")
    near = difflib.get_close_matches(entry, sorted({*groups, *endings}), n=2, cutoff=0.7)
    if not why and entry in ("query", "key", "value") and fused:
        why = f"query, key and value are one layer here, {fused[0]}: use 'attention'"
    if not why and near:
        why = f"did you mean {' or '.join(near)}"
    return (
        f"target_modules {entry!r} matches nothing in {type(model).__name__}: "
        f"{why or 'it is no Linear, Embedding or Conv1D layer of this model'}. "
        f"Groups: {', '.join(groups)}. Name endings: {', '.join(endings)}."
    )
