"""Exact parameter counts of every backbone x method x head policy, from the YAML files alone.

Models are built on the meta device: names and shapes, no weights, no memory, no network. A method that reads the
weights before it knows what it trains is counted on random ones, where the backbone is below `DRAWN_BELOW` parameters.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from baselines import Counts, NeedsWeightsError, apply_method, count, partition
from propulsion.harness import configs
from propulsion.harness.backbones import build_empty, load_model
from propulsion.harness.errors import UserError
from propulsion.harness.gauge import gauge, has_rule
from propulsion.harness.record import REPOSITORY
from propulsion.harness.settings import BackboneSpec, MethodSpec, TaskSpec
from propulsion.harness.sheets import NONE, Sheet
from propulsion.harness.trial import PAD

DRAWN_BELOW = 1_000_000_000  # 4 GB in float32: what a laptop holds beside the rest
BYTES = 4  # trained tensors are stored in float32
TASK = TaskSpec(name="counts", kind="classification", labels=["0", "1"])  # the paper counts with two labels
WAYS = {
    "no heads": "heads left out on both sides",
    "both heads": "the whole head on both sides",
    "as the paper": "the other method's head counted, this row's not: how the paper appears to count",
}
REFERENCES = ("lora", "full")

# Counted, never run: what the paper compares with or lists. The authors' code also puts a z on DeBERTa's
# rel_embeddings, which no gradient can reach; the methods here leave it out.
COUNT_ONLY = {
    "propulsion_linear": MethodSpec(
        name="propulsion_linear",
        apply="peft",
        title="Propulsion (linears only)",
        learning_rate=0.0,
        degree=15,
        peft={"peft_type": "PROPULSION", "target_modules": "all-linear", "degree": 15},
    ),
    "propulsion_code": MethodSpec(
        name="propulsion_code",
        apply="peft",
        title="Propulsion (all, with rel_embeddings)",
        head="frozen",
        learning_rate=0.0,
        degree=15,
        peft={"peft_type": "PROPULSION", "target_modules": ["all", "rel_embeddings"], "degree": 15},
    ),
}
FAMILY = {"propulsion_code": "deberta-v2"}  # where a method differs from all others


@dataclass(frozen=True)
class Count:
    """One row. `refusal` says why a method cannot be used on a backbone; it then has no counts.

    With a frozen head, what a method puts on the head (z) is part of `adapter`, and `head` is 0.
    """

    backbone: str
    method: str
    policy: str  # trained | frozen: the head
    counts: Counts | None
    own_head: int  # parameters of the backbone's head, trained or not
    base: int  # parameters of the backbone with its head, before any method
    refusal: str = ""
    # Of `adapter`, those that the outputs can tell apart; None where no rule is known (propulsion.harness.gauge).
    effective: int | None = None

    @property
    def bytes(self) -> int | None:
        """Size on disk of the trained tensors in float32, file headers left out."""
        return None if self.counts is None else BYTES * self.counts.trainable

    @property
    def share(self) -> float | None:
        """Trained parameters as a share of the model's own."""
        return None if self.counts is None else self.counts.trainable / self.base


REPORTED = (  # what is counted unless methods are named: the paper's grid, under a minute; all of peft's take nine
    *("adalora", "bitfit", "full", "head", "ia3", "ia3_peft", "lora", "propulsion", "propulsion_attn"),
    *("propulsion_package", "propulsion_paper"),
)


def load_backbone(name: str) -> BackboneSpec:
    """A backbone from its YAML file."""
    return _load("backbone", name, BackboneSpec)


def load_task(name: str) -> TaskSpec:
    """A task from its YAML file."""
    return _load("task", name, TaskSpec)


def load_method(name: str) -> MethodSpec:
    """A method from its YAML file, or one that is only counted."""
    return COUNT_ONLY[name] if name in COUNT_ONLY else _load("method", name, MethodSpec)


def _load(group: str, name: str, spec: Any) -> Any:
    content = OmegaConf.load(configs.file(group, name))
    resolved: Any = OmegaConf.to_container(OmegaConf.create({group: content}), resolve=True)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(spec), resolved[group]))


def count_cell(backbone: BackboneSpec, method: MethodSpec, policy: str) -> Count:
    """Count one model built on the meta device, or on random weights where the method reads them first."""
    model = build_empty(backbone, TASK)
    try:
        return count_model(model, backbone, method, policy)
    except NeedsWeightsError as error:
        size, own_head = _sizes(model, backbone)
        if size < DRAWN_BELOW:
            return count_model(_drawn(backbone), backbone, method, policy)
        why = f"{error}, and is counted on random ones below {DRAWN_BELOW:,} parameters alone"
        return Count(backbone.name, method.name, policy, None, own_head, size, why)


def _drawn(backbone: BackboneSpec) -> PreTrainedModel:
    """The backbone with random weights, the same ones each time."""
    spec = replace(backbone, weights="random", dtype="float32", quantize="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_model(spec, TASK, PAD)[0]


def _sizes(model: PreTrainedModel, backbone: BackboneSpec) -> tuple[int, int]:
    """Parameters of a whole model, and of its head."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name.split(".")[0] in backbone.head)


def count_model(model: PreTrainedModel, backbone: BackboneSpec, method: MethodSpec, policy: str) -> Count:
    """Apply a method to a fresh model of a backbone, which is changed by it, and count.

    Raises:
        NeedsWeightsError: the model is on the meta device, and the method reads its weights.
    """
    base, own_head = _sizes(model, backbone)
    method = dataclasses.replace(method, head=policy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers left out: their counts show it
            tuned = apply_method(model, method, backbone)
    except NeedsWeightsError:
        raise
    except UserError as error:
        return Count(backbone.name, method.name, policy, None, own_head, base, str(error))
    for name, parameter in tuned.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)  # a constant that peft's AdaLoRA keeps among its parameters
    parts = partition(tuned, backbone.head, policy != "frozen")
    counts = count(tuned, parts)
    if counts.trainable == 0:
        return Count(backbone.name, method.name, policy, None, own_head, base, "nothing left to train")
    effective = counts.adapter - gauge(tuned).redundant if has_rule(tuned, parts.adapter) else None
    return Count(backbone.name, method.name, policy, counts, own_head, base, effective=effective)


def count_all(backbones: Iterable[str] | None = None, methods: Iterable[str] | None = None) -> Iterator[Count]:
    """Every row, in the order of the report: backbones, methods, then the head trained and frozen."""
    chosen = list(methods) if methods is not None else [*REPORTED, *COUNT_ONLY]
    for backbone in map(load_backbone, backbones if backbones is not None else configs.names("backbone")):
        for method in map(load_method, chosen):
            if FAMILY.get(method.name, backbone.family) != backbone.family:
                continue
            policies = (method.head,) if method.head == "frozen" else ("trained", "frozen")
            first = count_cell(backbone, method, policies[0])
            yield first
            if len(policies) > 1:
                yield _with_frozen_head(first) if method.targets else count_cell(backbone, method, policies[1])


def _with_frozen_head(row: Count) -> Count:
    """The count of a method that names its targets in the backbone, and so puts nothing on a frozen head."""
    if row.counts is None:
        return replace(row, policy="frozen")
    own = row.counts
    return replace(row, policy="frozen", counts=Counts(own.adapter, 0, own.adapter, own.total))


def ratios(row: Count, reference: Count) -> dict[str, float | None]:
    """How many times fewer parameters than `reference` (its head trained), counted in the three ways.

    None where nothing would be left to divide by, or either side has no counts.
    """
    if row.counts is None or reference.counts is None or row.counts.adapter == 0:
        return dict.fromkeys(WAYS)
    ours, theirs, head = row.counts.adapter, reference.counts.adapter, row.own_head
    values = (theirs / ours, (theirs + head) / (ours + head), (theirs + head) / ours)
    return dict(zip(WAYS, values, strict=True))


def table_rows(rows: list[Count]) -> list[dict[str, object]]:
    """The rows as plain data, numbers unrounded, ratios to LoRA and to full fine-tuning included."""
    references = {(row.backbone, row.method): row for row in rows if row.policy == "trained"}
    return [_data(row, references) for row in rows]


def _data(row: Count, references: dict[tuple[str, str], Count]) -> dict[str, object]:
    counts = row.counts
    compared = {
        f"x_{name}_{way.replace(' ', '_')}": value
        for name in REFERENCES
        if (row.backbone, name) in references
        for way, value in ratios(row, references[row.backbone, name]).items()
    }
    return {
        "backbone": row.backbone,
        "method": row.method,
        "head_policy": row.policy,
        "adapter": counts and counts.adapter,
        "effective": row.effective,
        "head": counts and counts.head,
        "trainable": counts and counts.trainable,
        "own_head": row.own_head,
        "model": row.base,
        "share": row.share,
        "bytes_fp32": row.bytes,
        **compared,
        "refusal": row.refusal,
    }


NO_COUNT = Count("", "", "", None, 0, 0)  # a reference that was not asked for
HEADER = (
    *("method", "head is", "adapter", "effective", "head", "trainable", "share", "on disk"),
    *(f"{reference}: {way}" for reference in ("LoRA", "full") for way in WAYS),
)


def sheet(backbone: str, rows: list[Count]) -> Sheet:
    """The table of one backbone. `LoRA: no heads` is how many times fewer parameters than LoRA."""
    own = [row for row in rows if row.backbone == backbone]
    references = {(row.backbone, row.method): row for row in own if row.policy == "trained"}
    total, head = own[0].base, own[0].own_head
    title = f"{backbone}: {total:,} parameters with two labels, {head:,} of them the head"
    return Sheet(title, HEADER, tuple(_texts(row, references) for row in own), words=2)


def _texts(row: Count, references: dict[tuple[str, str], Count]) -> tuple[str, ...]:
    if row.counts is None:
        reason = "refused: no biases" if "biases" in row.refusal else row.refusal
        return (row.method, row.policy, reason, *[NONE] * (len(HEADER) - 3))
    compared = [
        value for name in REFERENCES for value in ratios(row, references.get((row.backbone, name), NO_COUNT)).values()
    ]
    return (
        row.method,
        row.policy,
        f"{row.counts.adapter:,}",
        NONE if row.effective is None else f"{row.effective:,}",
        f"{row.counts.head:,}",
        f"{row.counts.trainable:,}",
        percent(row.share or 0.0),
        size(row.bytes or 0),
        *(times(value) for value in compared),
    )


def percent(share: float) -> str:
    """Two significant digits at least: `0.069 %`."""
    return f"{100 * share:.2f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def size(number: int) -> str:
    """`344 kB`, `1.4 MB`, `26.4 GB`, powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:,.0f} {unit}" if number >= 100 * scale else f"{number / scale:.3g} {unit}"
    return f"{number} B"


def times(value: float | None) -> str:
    """`10.3x`; whole numbers from 100 on."""
    if value is None:
        return NONE
    return f"{value:,.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 1 else f"{value:.2g}x"


def arithmetic(backbone: BackboneSpec) -> tuple[list[str], int]:
    """The count of Propulsion on all layers, head frozen, written out from the shapes of a BERT-like encoder.

    Returns:
        The lines, and the number that they end on.
    """
    shape = backbone.architecture
    layers, d, ffn = (shape[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    linears = layers * (4 * d + ffn + d)
    embedded = linears + 3 * d
    total = embedded + d + len(TASK.labels)
    lines = [
        f"{layers} layers x (4 x {d} for attention + {ffn} + {d} for the feed-forward pair) = {linears:,}",
        f"+ 3 x {d} for the word, position and token type embeddings = {embedded:,}",
        f"+ {d} + {len(TASK.labels)} for z on the two layers of the frozen head = {total:,}",
    ]
    return lines, total


HEADLINE = {
    *(("roberta_base", "propulsion", "frozen"), ("roberta_large", "propulsion", "frozen")),
    *(("roberta_base", "full", "trained"), ("roberta_large", "full", "trained")),
    ("roberta_base", "lora", "trained"),
}


def headline(rows: list[Count]) -> list[str]:
    """The paper's headline, in five lines that anyone can check; none where `rows` lack what it is about."""
    found = {(row.backbone, row.method, row.policy): row for row in rows if row.counts}
    if not found.keys() >= HEADLINE:
        return []

    def number(backbone: str, method: str, policy: str = "trained") -> int:
        counts = found[backbone, method, policy].counts
        assert counts is not None
        return counts.trainable

    base, large = (number(b, "propulsion", "frozen") for b in ("roberta_base", "roberta_large"))
    full_base, full_large = (number(b, "full") for b in ("roberta_base", "roberta_large"))
    ways = ratios(found["roberta_base", "propulsion", "frozen"], found["roberta_base", "lora", "trained"])
    lora = found["roberta_base", "lora", "trained"].counts
    assert lora is not None
    return [
        f"355.3 M is full fine-tuning of RoBERTa-large: {full_large:,} parameters with two labels.",
        f"0.086 M is Propulsion on all layers of RoBERTa-base, its head frozen: {base:,}.",
        f"Like for like: {full_large:,} / {large:,} = {full_large / large:,.0f}x on RoBERTa-large and "
        f"{full_base:,} / {base:,} = {full_base / base:,.0f}x on RoBERTa-base; the mix of both gives "
        f"{full_large / base:,.0f}x.",
        f"LoRA (r=8 on q, v) of RoBERTa-base: {lora.adapter:,} + {lora.head:,} (head) = {lora.trainable:,}.",
        f"Against LoRA: {ways['as the paper']:.1f}x with LoRA's head counted and ours not, "
        f"{ways['no heads']:.1f}x without heads, {ways['both heads']:.1f}x with the head on both sides.",
    ]


def default_folder() -> Path:
    """Where the committed report lies."""
    return REPOSITORY / "results" / "params"
