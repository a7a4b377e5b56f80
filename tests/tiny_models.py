"""Tiny models of every family with random weights, built from configs alone: no download, a few kB each."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

VOCABULARY = 40
PAD = 1
HIDDEN = 16
LAYERS = 2

_ENCODER = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}
_LLAMA = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "deberta-v2": {
        **_ENCODER,
        # as DeBERTa-v3: no absolute positions, no token types, shared relative ones
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pooler_hidden_size": HIDDEN,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0.0,
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2, "n_positions": 32},
    "opt": {
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 32,
    },
    "t5": {
        "d_model": HIDDEN,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": LAYERS,
        "num_heads": 2,
        "decoder_start_token_id": PAD,
    },
}
FAMILIES = ("bert", "roberta", "deberta-v2", "llama", "gpt2")


def tiny_config(family: str, **overrides: Any) -> Any:
    """The config of a tiny model; `family` is the transformers model type."""
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
    settings = {**tokens, **ARCHITECTURES[family], **overrides}
    return AutoConfig.for_model(family, **settings)


def tiny_classifier(family: str, seed: int = 0, num_labels: int = 2, **overrides: Any) -> PreTrainedModel:
    """A sequence classifier in eval mode, the same weights for the same seed."""
    torch.manual_seed(seed)
    config = tiny_config(family, num_labels=num_labels, **overrides)
    return _shaken(AutoModelForSequenceClassification.from_config(config))


def tiny_language_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A language model in eval mode: sequence to sequence for t5, causal for the others."""
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    return _shaken(auto.from_config(tiny_config(family, **overrides)))


def _shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Noise on every weight: fresh models have zero biases and almost equal logits, which hide errors."""
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.0
    return model.eval()


def tiny_batch(rows: int = 3, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids `(rows, length)` with padding on the right, and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[1:, -2:] = PAD
    mask[1:, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % 2}
