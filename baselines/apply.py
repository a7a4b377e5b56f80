"""Apply a method to a classifier: freeze, unfreeze, or wrap it with peft."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedModel

import propulsion  # noqa: F401  (registers PROPULSION with peft)
from baselines.counts import in_head
from baselines.modules import import_method, rule_of
from propulsion.harness.errors import UserError, unknown
from propulsion.harness.settings import BackboneSpec, MethodSpec

HEAD_POLICIES = ("trained", "frozen", "wrapped")  # wrapped: trained, with the method's own parameters on it too
# Starts of LoRA that also say what of it is trained.
LORA_VARIANTS = peft.LoraConfig.__dataclass_fields__["init_lora_weights"].metadata.get("lora_variants", ())
ANY_STEPS = 1000  # of a run that never starts: a method is counted, or refused, before its rows are known
# What peft's configs and tuners raise where options, targets and model do not fit.
MISFITS = (ValueError, TypeError, AttributeError, KeyError, AssertionError)


class NeedsWeightsError(UserError):
    """The method reads the backbone's weights before it knows what it trains; on the meta device there are none."""


def apply_method(
    model: PreTrainedModel, method: MethodSpec, backbone: BackboneSpec, steps: int = ANY_STEPS
) -> PreTrainedModel | peft.PeftModel:
    """Make exactly the method's parameters trainable. Trainable parameters end up in float32 at least.

    Args:
        steps: of the run to come, for methods with a schedule of their own (`method.steps`).

    Raises:
        UserError: the method is unknown, its targets match nothing, or it cannot work on this backbone.
        NeedsWeightsError: that cannot be told of a model on the meta device.
    """
    if method.head not in HEAD_POLICIES:
        raise unknown("head policy", method.head, HEAD_POLICIES)
    _vectors(method)
    if backbone.quantize != "none" and method.apply != "peft":
        raise UserError(
            f"method {method.name} puts no adapter on the backbone, and the weights of backbone.quantize="
            f"{backbone.quantize} cannot be trained: use method=propulsion, lora or ia3, or backbone.quantize=none"
        )
    import_method(method)
    rules = RULES | rule_of(method)
    tuned: PreTrainedModel | peft.PeftModel = model
    if method.apply == "peft":
        tuned = _wrap(model, method, backbone, steps)
    elif method.head == "wrapped":
        raise UserError(f"method {method.name} puts nothing on the head: use method.head=trained or frozen")
    elif method.apply in rules:
        _unfreeze(model, rules[method.apply], method, backbone)
    else:
        raise unknown("way to apply a method", method.apply, [*rules, "peft"])
    for parameter in tuned.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # small updates are lost below fp32 (z moves within 2 %)
    return tuned


# What each rule trains in the backbone: name of the parameter -> trained or not.
RULES: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "head": lambda name: False,
    "bitfit": lambda name: name.endswith("bias"),
}
TRAINS_NOTHING = "head"  # the one rule that may leave the whole backbone frozen


def _unfreeze(model: PreTrainedModel, rule: Callable[[str], bool], method: MethodSpec, backbone: BackboneSpec) -> None:
    trained = 0
    for name, parameter in model.named_parameters():
        if in_head(name, backbone.head):
            parameter.requires_grad_(method.head == "trained")
        else:
            parameter.requires_grad_(bool(rule(name)))
            trained += int(parameter.requires_grad)
    if trained == 0 and method.apply != TRAINS_NOTHING:
        what = "biases" if method.apply == "bitfit" else "parameters that its rule names"
        raise UserError(
            f"method {method.name}: {backbone.name} has no {what} to train; use method=propulsion, lora or ia3"
        )


def _wrap(model: PreTrainedModel, method: MethodSpec, backbone: BackboneSpec, steps: int) -> peft.PeftModel:
    config_class, options = _options(model, method, backbone, steps)
    try:
        with warnings.catch_warnings():
            # peft 0.21 calls a name that transformers 5.23 has renamed
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            tuned = peft.get_peft_model(model, config_class(**options))
    except MISFITS as error:
        raise UserError(f"method {method.name} on {backbone.name}: {' '.join(str(error).split())}") from error
    except (NotImplementedError, RuntimeError) as error:
        if model.device.type != "meta":
            raise
        raise NeedsWeightsError(f"method {method.name} reads the weights before it knows what it trains") from error
    _check_prefix(tuned, method, backbone)
    _check_norms(tuned, method, backbone)
    if method.head == "wrapped":
        _unfreeze_wrapped_head(tuned, method, backbone)
    return tuned


def _options(
    model: PreTrainedModel, method: MethodSpec, backbone: BackboneSpec, steps: int
) -> tuple[Any, dict[str, Any]]:
    """peft's config class and what it is made with."""
    options = dict(method.peft)
    kind = str(options.pop("peft_type", "")).upper()
    options |= _vectors(method)
    configs: dict[str, Any] = {str(getattr(k, "value", k)): v for k, v in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in configs:
        raise unknown("peft_type", kind, configs)
    if method.targets:
        options["target_modules"] = roles_to_regex(method.targets, backbone)
    if method.feedforward:
        options["feedforward_modules"] = roles_to_regex(method.feedforward, backbone)
    options |= {name: round(share * steps) for name, share in method.steps.items()}
    if method.head == "trained":
        options |= {"task_type": "SEQ_CLS", "modules_to_save": list(backbone.head)}
    elif issubclass(configs[kind], peft.PromptLearningConfig):
        raise UserError(f"method {method.name}: with virtual tokens peft trains the head; use method.head=trained")
    start = options.get("init_lora_weights")
    if model.device.type == "meta" and isinstance(start, str) and start not in LORA_VARIANTS:
        options["init_lora_weights"] = True  # the start is computed from the weights; what is trained is LoRA's
    return configs[kind], options


def _check_prefix(tuned: peft.PeftModel, method: MethodSpec, backbone: BackboneSpec) -> None:
    """Refuse keys and values of virtual tokens where the backbone takes none; peft would say so in the first step."""
    config: Any = tuned.active_peft_config
    if config.peft_type not in (peft.PeftType.PREFIX_TUNING, peft.PeftType.CARTRIDGE):
        return
    encoder = tuned.base_model.get_submodule(tuned.transformer_backbone_name)
    if "past_key_values" not in inspect.signature(encoder.forward).parameters:
        raise UserError(
            f"method {method.name} on {backbone.name}: {type(encoder).__name__} takes no past_key_values, which a "
            "prefix is given as; use method=prompt_tuning or p_tuning"
        )


def _check_norms(tuned: peft.PeftModel, method: MethodSpec, backbone: BackboneSpec) -> None:
    """Refuse a tuner of the norms that leaves some out, as where a backbone of one's own calls them by another name."""
    if tuned.active_peft_config.peft_type != peft.PeftType.LN_TUNING:
        return
    kinds = [name for name, module in tuned.named_modules() if type(module).__name__.endswith("Norm")]
    left = [name for name in kinds if ".base_layer" not in name and ".ln_tuning_layers" not in name]
    if left := [name for name in left if not in_head(name, backbone.head)]:
        raise UserError(
            f"method {method.name} leaves {len(left)} of {backbone.name}'s norms out, as {left[0]}: "
            "name them all with a regex in method.peft.target_modules"
        )


def _vectors(method: MethodSpec) -> dict[str, Any]:
    """Propulsion's options that a method's file leaves alone: those that were given.

    Raises:
        UserError: the method is no Propulsion.
    """
    usual = MethodSpec()
    given = {
        name: getattr(method, name)
        for name in ("num_vectors", "pooling", "init_spread")
        if getattr(method, name) != getattr(usual, name)
    }
    if given and (method.apply != "peft" or str(method.peft.get("peft_type", "")).upper() != "PROPULSION"):
        raise UserError(f"method {method.name} has no {next(iter(given))}: only Propulsion's methods do")
    return given


def _unfreeze_wrapped_head(tuned: peft.PeftModel, method: MethodSpec, backbone: BackboneSpec) -> None:
    own = {name: parameter for name, parameter in tuned.named_parameters() if in_head(name, backbone.head)}
    if not any(parameter.requires_grad for parameter in own.values()):
        raise UserError(f"method {method.name} puts nothing on the head: use method.head=trained or frozen")
    for parameter in own.values():
        parameter.requires_grad_(True)


def roles_to_regex(roles: list[str], backbone: BackboneSpec) -> str:
    """One regex for the named roles (`query`, `ffn_out`, ...) in this backbone's module names."""
    for role in roles:
        if role not in backbone.roles:
            raise unknown(f"module role of {backbone.name}", role, backbone.roles)
    return "|".join(f"({backbone.roles[role]})" for role in roles)
