"""The Propulsion tuner: puts a scaled layer in the place of each target."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from propulsion.tuner.layer import Conv1D, Embedding, Linear, PropulsionLayer
from propulsion.tuner.rows import adapters_by_row
from propulsion.tuner.targets import resolve_targets, with_namesakes

HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


class PropulsionModel(BaseTuner):
    """A model whose chosen layers have their outputs scaled by trainable vectors, everything else frozen.

    Kowsher, Prottasha, Bhat: "Propulsion: Steering LLM with Tiny Fine-Tuning", https://arxiv.org/abs/2409.10927.

    Args:
        model: The model to adapt; any module with Linear, Embedding or Conv1D layers.
        config: The [`PropulsionConfig`].
        adapter_name: The name of the adapter, `"default"` if not given.

    Example:

        >>> from transformers import AutoModelForSequenceClassification
        >>> from peft import get_peft_model
        >>> from propulsion import PropulsionConfig

        >>> model = AutoModelForSequenceClassification.from_pretrained("roberta-base")
        >>> model = get_peft_model(model, PropulsionConfig(degree=15, task_type="SEQ_CLS"))
    """

    prefix = "propulsion_"
    tuner_layer_cls = PropulsionLayer
    in_place_allowed = False

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Resolves the targets, then lets peft do the rest. The caller's config is not changed by it.

        Raises:
            ValueError: A target matches nothing; the message lists what could match.
        """
        config: Any = copy.copy(self.peft_config[adapter_name])
        _name_heads(config)
        found = resolve_targets(model, config)
        config.exclude_modules = with_namesakes(model, config, found)
        config.target_modules = found
        config.layers_found = frozenset(found)  # no field of the config, so not saved; peft may shorten the names
        self.peft_config[adapter_name] = config
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        _leave_fast_path(model)
        if self.in_place_allowed:
            self.allow_in_place()

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config  # nothing left to infer: `inject_adapter` has resolved the targets

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        if key in peft_config.layers_found:
            return True
        matched = check_target_module_exists(peft_config, key)
        return False if matched else matched  # peft takes a full name for an ending; it has its own "excluded"

    def _check_tied_modules(self, model: nn.Module, peft_config: Any) -> None:
        """Nothing to warn of: z acts on a layer's output, and merging unties (`PropulsionLayer.merge`)."""

    def _check_merge_allowed(self) -> None:
        """Asks every layer before the first is merged, so that a refusal leaves the model as it was."""
        for layer in self._scaled_layers():
            layer.check_mergeable()

    @staticmethod
    def _create_new_module(config: Any, adapter_name: str, target: nn.Module) -> PropulsionLayer:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(base, nn.Embedding):
            return Embedding(target, adapter_name, config)
        if isinstance(base, TransformersConv1D):
            return Conv1D(target, adapter_name, config)
        return Linear(target, adapter_name, config)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, PropulsionLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self._create_new_module(peft_config, adapter_name, target)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trainable until it is made active
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's version goes on to copy `child.weight`, which a classification head does not have. There is
        # nothing to copy or to move: a scaled layer keeps its base layer whole and makes z on its device.
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        ties = _tied_parameters(self.model) if merge else []
        model: Any = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        if any(len({id(getattr(module, name)) for module, name in tie}) > 1 for tie in ties):
            _mark_untied(model)
        return model

    def allow_in_place(self) -> None:
        """For models that change a layer's output in place, as Falcon or `ReLU(inplace=True)`.

        From degree 2 on, z's gradient is taken from the scaled output, of which such a change leaves nothing, and the
        backward pass ends in an error. After this call the unscaled output is kept instead: the same gradient but for
        rounding, for more memory. It holds for adapters that are added later as well.
        """
        self.in_place_allowed = True
        for layer in self._scaled_layers():
            layer.keeps_unscaled = True

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        with nullcontext() if names is None else adapters_by_row(self, names, kwargs.get("num_beams")):
            yield

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """Makes a new adapter whose scale is the product of others' scales, each to the power of its weight.

        Weights of 1 give what the adapters give when they are active together; a single one with weight 0.5 is
        half as strong. z^k is taken over as it is: the new adapter has the degree of the first, and a z on every
        layer that one of them scales.

        Args:
            adapters: Names of loaded adapters.
            weights: One number for each.
            adapter_name: The name of the new adapter, which is not made active.

        Raises:
            ValueError: An unknown or a taken name, more or fewer weights, an adapter with `modules_to_save` or
                trained biases, or a z that is not above 0 and so has no such power. No trace of the new adapter
                is left then, nor after any other error.
        """
        configs = self._check_weighted(adapters, weights, adapter_name)
        targets = {name for config in configs for name in config.target_modules}
        chosen: dict[str, Any] = {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
        start: dict[str, Any] = {"init_weights": True, "init_spread": 0.0, "num_vectors": 1}
        self.peft_config[adapter_name] = dataclasses.replace(configs[0], target_modules=targets, **chosen, **start)
        try:
            self.inject_adapter(self.model, adapter_name)
            self._multiply(adapters, weights, adapter_name)
        except BaseException:
            del self.peft_config[adapter_name]
            for layer in self._scaled_layers():
                layer.delete_adapter(adapter_name)
            raise

    @torch.no_grad()
    def _multiply(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """Sets every z of `adapter_name` to the root of the product of the others' scales to their weights."""
        for layer in self._scaled_layers():
            if adapter_name not in layer.propulsion_z:
                continue
            new = layer.propulsion_z[adapter_name].requires_grad_(False)
            log = torch.zeros_like(new)
            for name, weight in zip(adapters, weights, strict=True):
                if name in layer.propulsion_z:
                    log += weight * layer.degree[name] * layer.vector(name).log()
            new.copy_(torch.exp(log / layer.degree[adapter_name]))

    def _check_weighted(self, adapters: list[str], weights: list[float], adapter_name: str) -> list[Any]:
        if adapter_name in self.peft_config:
            raise ValueError(f"there is an adapter {adapter_name!r} already")
        if not adapters or len(adapters) != len(weights):
            raise ValueError(f"{len(adapters)} adapters and {len(weights)} weights: give one weight for each")
        for name in adapters:
            if name not in self.peft_config:
                raise ValueError(f"no adapter {name!r} is loaded; there are {', '.join(self.peft_config)}")
        for module in self.modules():
            if isinstance(module, ModulesToSaveWrapper) and set(adapters) & set(module.modules_to_save):
                raise ValueError("an adapter that trains a module whole (modules_to_save) has no weighted product")
        configs: list[Any] = [self.peft_config[name] for name in adapters]
        for name, config in zip(adapters, configs, strict=True):
            if config.bias != "none":
                raise ValueError(f"adapter {name!r} trains biases (bias={config.bias!r}): it has no weighted product")
        for layer in self._scaled_layers():
            for name in set(adapters) & set(layer.propulsion_z):
                if not bool((layer.vector(name) > 0).all()):
                    raise ValueError(f"adapter {name!r} has a z that is not above 0: it has no weighted product")
        return configs

    def _scaled_layers(self) -> list[PropulsionLayer]:
        return [module for module in self.model.modules() if isinstance(module, PropulsionLayer)]


def _name_heads(config: Any) -> None:
    """Names the heads that peft trains whole: for these tasks it does so after the layers have been chosen."""
    heads = HEADS.get(config.task_type, ())
    given = list(config.modules_to_save or ())
    if missing := [name for name in heads if name not in given]:
        config.modules_to_save = given + missing


def _leave_fast_path(model: nn.Module) -> None:
    """Has torch's encoder layers call what is scaled: in evaluation their fast path reads the weights instead."""
    for module in model.modules():
        if not isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
            continue
        if any(isinstance(inner, PropulsionLayer) for inner in module.modules()):
            if isinstance(module, nn.TransformerEncoder):  # nested tensors are for the fast path alone
                module.enable_nested_tensor = module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0


def _tied_parameters(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The parameters that several modules hold, each as its list of (module, parameter name)."""
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            holders[id(parameter)].append((module, name))
    return [tie for tie in holders.values() if len(tie) > 1]


def _mark_untied(model: nn.Module) -> None:
    """Tells the model's config that tied weights differ now, or loading it again would tie them.

    The config has one switch for all ties, decoder biases among them: those that still hold would not be saved
    and not be tied on loading, so each holder gets a copy of its own.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        warnings.warn("merging has untied the embeddings: tie_word_embeddings is now False", stacklevel=4)
        config.tie_word_embeddings = False
    if not getattr(config, "tie_word_embeddings", True):  # peft may have been first
        _separate_ties(model)


def _separate_ties(model: nn.Module) -> None:
    for tie in _tied_parameters(model):
        for module, name in tie[1:]:
            old = getattr(module, name)
            setattr(module, name, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))
