"""What is compared: one backbone of random weights under each way to tune it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

from propulsion import PropulsionConfig, fast_path
from propulsion.fast import find_path
from propulsion.harness.backbones import MeanPoolingBert

DEGREE = 15
DROPOUT = 0.1
SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "pad_token_id": 0,
    },
    "roberta_base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "roberta_large": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "deberta": {  # the blocks of DeBERTa-v3-xsmall, half of its layers, a smaller vocabulary
        "model_type": "deberta-v2",
        "vocab_size": 32000,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pad_token_id": 0,
    },
    "llama": {  # the blocks of LLaMA at a width that two cores train
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1408,
        "pad_token_id": 0,
    },
}
FUSED = ("bert", "roberta")  # the families of the fused layers
HEADS = ("classifier", "score")
LINEARS = ["query", "key", "value", "dense"]
FFN_OUT = r".*layer\.\d+\.output\.dense"


class PlainScale(nn.Module):
    """The paper's formula in ordinary modules, V' = V * z^k (arXiv 2409.10927): nothing of ours in it."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.z = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output times z to the degree."""
        return self.layer(x) * self.z**DEGREE


def backbone(shape: str) -> Any:
    """A classifier of that shape with the same random weights every time."""
    torch.manual_seed(0)
    settings = dict(SHAPES[shape])
    kind = settings.pop("model_type")
    settings |= {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT, "num_labels": 2}
    if kind == "bert":
        return MeanPoolingBert(BertConfig(**settings))
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **settings))


def _train(model: Any, rule: Callable[[str], bool]) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rule(name) or name.startswith(HEADS))
    return model


def _plain(model: Any) -> Any:
    _train(model, lambda name: False)
    for name, module in list(model.named_modules()):
        direct = name.startswith(HEADS) or name.endswith("rel_embeddings")  # DeBERTa reads that one's weight
        if isinstance(module, (nn.Linear, nn.Embedding)) and not direct:
            parent, _, last = name.rpartition(".")
            width = module.out_features if isinstance(module, nn.Linear) else module.embedding_dim
            setattr(model.get_submodule(parent), last, PlainScale(module, width))
    return model


def _peft(config: Any) -> Callable[[Any], Any]:
    return lambda model: get_peft_model(model, config(task_type="SEQ_CLS"))


def _ours(config: Any) -> Any:
    return get_peft_model(config, PropulsionConfig(task_type="SEQ_CLS", degree=DEGREE))


def _ia3(**options: Any) -> Any:
    """The targets of arXiv 2205.05638, section 3.3."""
    return IA3Config(target_modules=rf".*(key|value)|{FFN_OUT}", feedforward_modules=FFN_OUT, **options)


def _lora(targets: list[str]) -> Callable[..., Any]:
    return lambda **options: LoraConfig(target_modules=targets, r=8, lora_alpha=16, **options)


# name -> what it makes of a backbone. The first is what all others are compared with.
ENTRANTS: dict[str, Callable[[Any], Any]] = {
    "plain formula": _plain,
    "peft IA3": _peft(_ia3),
    "peft LoRA q,v": _peft(_lora(["query", "value"])),
    "peft LoRA all": _peft(_lora(LINEARS)),
    "BitFit": lambda model: _train(model, lambda name: name.endswith("bias")),
    "full": lambda model: _train(model, lambda name: True),
    "ours, plain path": _ours,
    "ours, fast": lambda model: fast_path(_ours(model)),
    "ours, lean": lambda model: fast_path(_ours(model), lean=True),
    "BitFit, fast": lambda model: fast_path(_train(model, lambda name: name.endswith("bias"))),
    "IA3, fast": lambda model: fast_path(_peft(_ia3)(model)),
}

# Families without fused layers: our scaled layer alone, IA3 and LoRA with peft's own targets.
SCALED: dict[str, Callable[[Any], Any]] = {
    "plain formula": _plain,
    "peft IA3": _peft(IA3Config),
    "peft LoRA q,v": _peft(lambda **options: LoraConfig(r=8, lora_alpha=16, **options)),
    "ours, plain path": _ours,
}


def compiled(model: Any) -> Any:
    """The model with its forward compiled, one graph a shape."""
    model.compile(dynamic=False)
    return model


def by_groups(model: Any) -> Any:
    """A model on the fast path, without the kernel for sequences of any length."""
    path = find_path(model)
    assert path is not None
    path.varlen = False
    return model


# On a CPU nobody waits for the compiler, and there is no other attention.
ON_CUDA: dict[str, Callable[[Any], Any]] = {"ours, plain path, compiled": lambda model: compiled(_ours(model))}
FUSED_ON_CUDA: dict[str, Callable[[Any], Any]] = {
    "ours, fast, attention by groups": lambda model: by_groups(fast_path(_ours(model)))
}


def entrants(shape: str, device: str = "cpu") -> dict[str, Callable[[Any], Any]]:
    """Who takes part on a shape."""
    fused = SHAPES[shape]["model_type"] in FUSED
    found = ENTRANTS if fused else SCALED
    return found if device == "cpu" else {**found, **ON_CUDA, **(FUSED_ON_CUDA if fused else {})}
