"""Apply a method to a classifier: freeze, unfreeze, or wrap it with peft."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedModel

import propulsion  # noqa: F401  (registers PROPULSION with peft)
from baselines.counts import in_head
from propulsion.harness.errors import UserError, unknown
from propulsion.harness.settings import BackboneSpec, MethodSpec

HEAD_POLICIES = ("trained", "frozen", "wrapped")  # wrapped: trained, with the method's own parameters on it too


def apply_method(
    model: PreTrainedModel, method: MethodSpec, backbone: BackboneSpec
) -> PreTrainedModel | peft.PeftModel:
    """Make exactly the method's parameters trainable. Trainable parameters end up in float32 at least.

    Raises:
        UserError: the method is unknown, its targets match nothing, or it cannot work on this backbone.
    """
    if method.head not in HEAD_POLICIES:
        raise unknown("head policy", method.head, HEAD_POLICIES)
    _vectors(method)
    if backbone.quantize != "none" and method.apply != "peft":
        raise UserError(
            f"method {method.name} puts no adapter on the backbone, and the weights of backbone.quantize="
            f"{backbone.quantize} cannot be trained: use method=propulsion, lora or ia3, or backbone.quantize=none"
        )
    tuned: PreTrainedModel | peft.PeftModel = model
    if method.apply == "peft":
        tuned = _wrap(model, method, backbone)
    elif method.head == "wrapped":
        raise UserError(f"method {method.name} puts nothing on the head: use method.head=trained or frozen")
    elif method.apply in RULES:
        _unfreeze(model, method, backbone)
    else:
        raise unknown("way to apply a method", method.apply, [*RULES, "peft"])
    for parameter in tuned.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # small updates are lost below fp32 (z moves within 2 %)
    return tuned


# What each rule trains in the backbone: name of the parameter -> trained or not.
RULES: dict[str, Any] = {
    "full": lambda name: True,
    "head": lambda name: False,
    "bitfit": lambda name: name.endswith("bias"),
}


def _unfreeze(model: PreTrainedModel, method: MethodSpec, backbone: BackboneSpec) -> None:
    rule = RULES[method.apply]
    trained = 0
    for name, parameter in model.named_parameters():
        if in_head(name, backbone.head):
            parameter.requires_grad_(method.head == "trained")
        else:
            parameter.requires_grad_(rule(name))
            trained += int(parameter.requires_grad)
    if method.apply == "bitfit" and trained == 0:
        raise UserError(
            f"method {method.name}: {backbone.name} has no biases to train; use method=propulsion, lora or ia3"
        )


def _wrap(model: PreTrainedModel, method: MethodSpec, backbone: BackboneSpec) -> peft.PeftModel:
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
    if method.head == "trained":
        options |= {"task_type": "SEQ_CLS", "modules_to_save": list(backbone.head)}
    try:
        with warnings.catch_warnings():
            # peft 0.21 calls a name that transformers 5.23 has renamed
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            tuned = peft.get_peft_model(model, configs[kind](**options))
    except (ValueError, TypeError) as error:  # peft's way to say that options or targets do not fit
        raise UserError(f"method {method.name} on {backbone.name}: {' '.join(str(error).split())}") from error
    if method.head == "wrapped":
        _unfreeze_wrapped_head(tuned, method, backbone)
    return tuned


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
