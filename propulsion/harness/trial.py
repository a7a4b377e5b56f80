"""A method tried on a tiny model of a family: whether it trains, answers row by row, saves and loads, or why not."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import set_seed

from baselines import apply_method, in_head, partition
from baselines.hooks import merge, start_from_data, starts_from_data
from propulsion.harness.backbones import load_model
from propulsion.harness.errors import UserError
from propulsion.harness.settings import BackboneSpec, MethodSpec, TaskSpec
from propulsion.harness.weights import load_trained, save_trained, tensor_names

FAMILIES = {  # family -> the backbone file whose tiny twin stands for it
    "BERT": "minilm",
    "RoBERTa": "roberta_base",
    "DeBERTa-v3": "deberta_v3_base",
    "LLaMA": "llama_7b",
    "Mistral": "mistral_7b",
    "Qwen2": "qwen2_7b",
}
TASK = TaskSpec(name="trial", kind="classification", labels=["0", "1"])
TINY = {
    **{"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 64, "max_position_embeddings": 66},
}
PAD = 1
STEPS = 4
TOLERANCE = 2e-5  # of logits in float32, between batches of other lengths, after a reload, and merged

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """What came of it. `problem`: the refusal, or what went wrong; None where all went well."""

    method: str
    family: str
    problem: str | None
    merges: bool | None = None  # into the backbone's weights, to the same logits; None: peft has no merge for it


def tiny(backbone: BackboneSpec) -> BackboneSpec:
    """The backbone with random weights and a few kB of them; what the shape does not touch is its own."""
    own = backbone.architecture | TINY
    if "num_key_value_heads" in own:  # keys and values shared by all heads where the backbone's share theirs
        shared = own["num_key_value_heads"] != backbone.architecture["num_attention_heads"]
        own |= {"num_key_value_heads": 1 if shared else TINY["num_attention_heads"]}
        own |= {"head_dim": TINY["hidden_size"]} if shared else {}  # one head of the width that methods divide
    if "pooler_hidden_size" in own:  # refers to the width in the YAML, where it has been resolved
        own["pooler_hidden_size"] = TINY["hidden_size"]
    return replace(backbone, weights="random", dtype="float32", architecture=own, max_length=TINY["hidden_size"])


def try_method(method: MethodSpec, family: str, backbone: BackboneSpec) -> Trial:
    """Train `STEPS` steps on random ids, then check what a run relies on.

    Every trained number gets a gradient; a row's logits hang neither on the other rows nor on padding; saved and loaded
    onto the same start, the model gives the same logits, and merged where that is possible.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merges = _try(method, tiny(backbone))
    except UserError as error:
        return Trial(method.name, family, str(error))
    except Exception as error:  # whatever a library raises: the table says it
        return Trial(method.name, family, " ".join(f"{type(error).__name__}: {error}".split()))
    return Trial(method.name, family, None, merges)


def _try(method: MethodSpec, spec: BackboneSpec) -> bool | None:
    def started() -> nn.Module:
        set_seed(0)
        return _shaken(load_model(spec, TASK, PAD, dropout=0.0)[0])

    model = apply_method(started(), method, spec, STEPS)  # type: ignore[arg-type]
    batch = draw()
    if starts_from_data(model):
        start_from_data(model, [draw(seed) for seed in range(8)])
    parts = partition(model, spec.head, method.head != "frozen")
    _train(model, [*parts.adapter, *parts.head], batch)
    model.eval()
    logits = answer(model, batch)
    _check_rows(model, batch, logits)
    restored = _reloaded(model, method, spec, started)
    worst = float((answer(restored, batch) - logits).abs().max())
    if not worst <= TOLERANCE:
        raise UserError(f"saved and loaded, the logits differ by {worst:.1e}")
    return _merges(restored, batch, logits)


def draw(seed: int = 0, rows: int = 4, length: int = 12) -> Batch:
    """Ids and mask `(rows, length)`; all rows but the first end in padding."""
    ids = torch.randint(4, TINY["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[1:, -4:], mask[1:, -4:] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def answer(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits `(rows, labels)`."""
    with torch.no_grad():
        logits: torch.Tensor = model(**batch).logits
    return logits


def _shaken(model: nn.Module) -> nn.Module:
    """Fresh models have zero biases and almost equal logits, which would hide what goes wrong."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def _train(model: nn.Module, names: list[str], batch: Batch) -> None:
    model.train()
    known = dict(model.named_parameters())
    silent = set(names)
    optimizer = torch.optim.AdamW([known[name] for name in names], lr=1e-2)
    update: Any = getattr(getattr(model, "base_model", None), "update_and_allocate", None)
    labels = torch.arange(len(batch["input_ids"])) % 2
    for step in range(STEPS):
        model(**batch, labels=labels).loss.backward()
        silent -= {name for name in silent if (grad := known[name].grad) is not None and bool(grad.any())}
        optimizer.step()
        if update is not None:
            update(step)
        optimizer.zero_grad()
    if silent:
        raise UserError(f"{len(silent)} of {len(names)} trained tensors never get a gradient, as {min(silent)}")


def _check_rows(model: nn.Module, batch: Batch, logits: torch.Tensor) -> None:
    alone = answer(model, {name: value[1:2, :8] for name, value in batch.items()})
    worst = float((alone - logits[1:2]).abs().max())
    if not worst <= TOLERANCE:
        raise UserError(f"a row's logits depend on the rows and the padding beside it (by {worst:.1e})")


def _merges(model: nn.Module, batch: Batch, logits: torch.Tensor) -> bool | None:
    if not isinstance(model, peft.PeftModel) or not hasattr(model.base_model, "merge_and_unload"):
        return None
    try:
        merged = merge(model)
    except (NotImplementedError, ValueError):  # peft's word for a method that is no change of a weight
        return False
    worst = float((answer(merged, batch) - logits).abs().max())
    if not worst <= TOLERANCE:
        raise UserError(f"merged, the logits differ by {worst:.1e}")
    return True


def _reloaded(model: nn.Module, method: MethodSpec, spec: BackboneSpec, started: Callable[[], nn.Module]) -> nn.Module:
    """The model from what it saves: peft's adapter folder, or the trained tensors of a rule."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, peft.PeftModel):
            model.save_pretrained(folder, save_embedding_layers=False)
            fresh: Any = started()
            return peft.PeftModel.from_pretrained(fresh, folder).eval()
        parts = partition(model, spec.head, method.head != "frozen")
        head = [name for name, _ in model.named_parameters() if in_head(name, spec.head)]
        names, path = tensor_names(model, [*parts.adapter, *parts.head], head), Path(folder, "trained.safetensors")
        save_trained(model, names, path)
        again: Any = apply_method(started(), method, spec, STEPS)  # type: ignore[arg-type]
        load_trained(again, path, names)
        return again.eval()
