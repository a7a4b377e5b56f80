"""Effective parameters: what moves between scales without a trace, and the rank of the Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.ia3.layer import IA3Layer
from peft.tuners.lora import BdLoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from propulsion import PropulsionConfig
from propulsion.harness import params, trial
from propulsion.harness.backbones import load_model
from propulsion.harness.gauge import Gauge, gauge, has_rule
from propulsion.harness.ntk.jacobians import Piece, jacobian
from propulsion.tuner.layer import PropulsionLayer
from tests.conftest import names
from tests.test_tuner import draw_z
from tests.tiny_models import HIDDEN, LAYERS, VOCABULARY, tiny_batch, tiny_classifier

PAIRS = {"bert": ("query", "key"), "roberta": ("query", "key"), "deberta-v2": ("query_proj", "key_proj")}


def tuned(family: str, target: Any = "attention", **options: Any) -> Any:
    base = tiny_classifier(family).double()
    config = PropulsionConfig(degree=3, target_modules=target, task_type="SEQ_CLS", **options)
    model = get_peft_model(base, config).eval()
    draw_z(model, spread=0.1)
    return model


def scaled(model: Any) -> dict[str, PropulsionLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, PropulsionLayer)}


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(**tiny_batch()).logits
    return found


@torch.no_grad()
def move(model: Any, source: str, target: str, factors: torch.Tensor) -> None:
    """Take factors from the z of layers named `source` into those of their neighbours named `target`."""
    layers = scaled(model)
    for name, layer in layers.items():
        if name.endswith(f".{source}"):
            layer.propulsion_z["default"].mul_(factors)
            layers[f"{name.rpartition('.')[0]}.{target}"].propulsion_z["default"].div_(factors)


@pytest.mark.parametrize("family", PAIRS)
def test_scale_moved_from_query_to_key_leaves_the_outputs(family: str) -> None:
    model = tuned(family)
    before = outputs(model)
    factors = 0.5 + torch.rand(HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    move(model, *PAIRS[family], factors)
    torch.testing.assert_close(outputs(model), before, rtol=1e-10, atol=1e-12)


def test_scale_moved_from_query_to_value_does_not() -> None:
    model = tuned("bert")
    before = outputs(model)
    move(model, "query", "value", torch.full((HIDDEN,), 1.2, dtype=torch.float64))
    assert (outputs(model) - before).abs().max() > 1e-3


def test_rotary_positions_need_one_factor_for_both_features_of_a_pair() -> None:
    model = tuned("llama")
    before = outputs(model)
    head = HIDDEN // 2  # 2 heads share the 1 key head; features i and i + head / 2 are a pair
    generator = torch.Generator().manual_seed(2)
    pair = (0.5 + torch.rand(head // 2, dtype=torch.float64, generator=generator)).repeat(2)
    layers = scaled(model)
    with torch.no_grad():
        for name, layer in layers.items():
            if name.endswith(".k_proj"):
                layer.propulsion_z["default"].mul_(pair)
                layers[name.replace("k_proj", "q_proj")].propulsion_z["default"].div_(pair.repeat(2))
    torch.testing.assert_close(outputs(model), before, rtol=1e-10, atol=1e-12)
    loose = torch.linspace(0.5, 1.5, head, dtype=torch.float64)
    with torch.no_grad():
        for name, layer in layers.items():
            if name.endswith(".k_proj"):
                layer.propulsion_z["default"].mul_(loose)
                layers[name.replace("k_proj", "q_proj")].propulsion_z["default"].div_(loose.repeat(2))
    assert (outputs(model) - before).abs().max() > 1e-6
    assert gauge(model).query_key == LAYERS * head // 2


def rank(model: Any, rows: int = 100) -> int:
    """The rank of the Jacobian of the logits by all z, over random rows of several lengths."""
    generator = torch.Generator().manual_seed(0)
    zs = [n for n, p in model.named_parameters() if "propulsion_z" in n]
    parameters = dict(model.named_parameters())
    pieces = [Piece(n, None, parameters[n].numel(), 1) for n in zs]
    lines = []
    for number in range(rows):
        length = 3 + number % 7
        ids = torch.randint(4, VOCABULARY, (1, length), generator=generator)
        kinds = torch.randint(0, 2, (1, length), generator=generator)
        lines.append(jacobian(model, pieces, {"input_ids": ids, "token_type_ids": kinds}))
    values = torch.linalg.svdvals(torch.cat(lines))
    return int((values > 1e-9 * values[0]).sum())


@pytest.mark.parametrize(
    ("target", "options"),
    [("attention", {}), (["query", "key"], {}), (["query"], {}), ("embeddings", {}), ("attention", {"num_vectors": 2})],
)
def test_effective_parameters_are_the_rank_of_the_jacobian(target: Any, options: dict[str, Any]) -> None:
    model = tuned("bert", target, **options)
    scales = sum(p.numel() for n, p in model.named_parameters() if "propulsion_z" in n)
    assert rank(model) == scales - gauge(model).redundant < scales + (target == ["query"])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("attention", Gauge(query_key=LAYERS * HIDDEN)),
        ("query", Gauge()),
        ("value", Gauge()),
        ("mlp", Gauge()),
        ("embeddings", Gauge(norm=1)),
        (["word_embeddings"], Gauge()),
        ("all", Gauge(query_key=LAYERS * HIDDEN, norm=1)),
    ],
)
def test_what_is_redundant_by_position(target: Any, expected: Gauge) -> None:
    assert gauge(tuned("bert", target)) == expected


def test_fused_layers_vectors_and_lora() -> None:
    assert gauge(tuned("gpt2", "attention")).query_key == LAYERS * HIDDEN
    assert gauge(tuned("bert", "value", num_vectors=3)) == Gauge(vectors=2 * LAYERS * HIDDEN)
    lora = get_peft_model(tiny_classifier("bert"), LoraConfig(r=3, target_modules=["query", "value"]))
    assert gauge(lora) == Gauge(low_rank=2 * LAYERS * 9)


def test_the_counts_have_effective_parameters_beside_them() -> None:
    row = params.count_cell(params.load_backbone("roberta_base"), params.load_method("propulsion_attn"), "trained")
    assert row.counts is not None
    assert (row.counts.adapter, row.effective) == (27_648, 27_648 * 2 // 3)
    whole = params.count_cell(params.load_backbone("roberta_base"), params.load_method("propulsion_paper"), "frozen")
    assert whole.effective == 86_018 - 12 * 768 - 1
    lora = params.count_cell(params.load_backbone("roberta_base"), params.load_method("lora"), "trained")
    assert lora.effective == 294_912 - 24 * 64
    adalora = params.count_cell(params.load_backbone("roberta_base"), params.load_method("adalora"), "trained")
    assert adalora.effective == 438_912 == 24 * (2 * 12 * 768 + 12) - 24 * (144 + 12)
    assert "effective" in params.HEADER


# Every method of peft's, layer by layer

# Those with a rule. Propulsion's own look beyond one layer: they are compared by the model's outputs, above.
RULED = {
    *("adalora", "bdlora", "dora", "eva", "ia3", "ia3_peft", "lora", "lora_orthogonal", "mica", "olora", "pissa"),
    *("rslora", "velora"),
}
OURS = {"propulsion", "propulsion_attn", "propulsion_paper"}


def rank_by_layers(model: nn.Module) -> int:
    """The ranks, layer by layer, of the map from what an adapter trains in it to the layer's outputs.

    By differences: VeLoRA's backward pass and DoRA's, which takes norms for constants, are not that of their outputs.
    """
    layers = [m for m in model.modules() if isinstance(m, (LoraLayer, IA3Layer))]
    return sum(rank_of_layer(layer) for layer in layers)


@torch.no_grad()
def rank_of_layer(layer: Any, step: float = 1e-4) -> int:
    unit = torch.eye(layer.in_features, dtype=torch.float64)
    columns = []
    for parameter in layer.parameters():
        for entry in parameter.view(-1) if parameter.requires_grad else ():
            before, ends = entry.clone(), []
            for end in (step, -step):
                entry.copy_(before + end)
                ends.append(layer(unit).flatten())
            entry.copy_(before)
            columns.append((ends[0] - ends[1]) / (2 * step))
    values = torch.linalg.svdvals(torch.stack(columns))
    return int((values > 1e-6 * values[0]).sum())


@pytest.mark.parametrize("name", names("method"))
def test_the_rule_of_every_method_is_the_rank_of_its_layers(name: str) -> None:
    backbone, method = trial.tiny(params.load_backbone("minilm")), params.load_method(name)
    torch.manual_seed(0)
    model = load_model(backbone, trial.TASK, trial.PAD)[0]
    row = params.count_model(model, backbone, method, method.head)
    assert (row.effective is not None) == (name in RULED | OURS or name == "head")
    if name in RULED:
        model.double().eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter) * parameter.requires_grad
        assert row.effective == rank_by_layers(model)


@pytest.mark.parametrize("blocks", [{"target_modules_bd_a": ["query"]}, {"target_modules_bd_b": ["query"]}])
def test_block_diagonal_factors_have_a_choice_of_basis_in_each_block(blocks: dict[str, list[str]]) -> None:
    config = LoraConfig(r=4, target_modules=["query"], use_bdlora=BdLoraConfig(nblocks=2, **blocks))
    model = get_peft_model(tiny_classifier("bert").double(), config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter) * parameter.requires_grad
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert gauge(model) == Gauge(low_rank=LAYERS * 8)
    assert rank_by_layers(model) == trained - LAYERS * 8


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "lora_only"},
        {"r": HIDDEN},
        {"r": 4, "alora_invocation_tokens": [1]},
    ],
)
def test_what_no_rule_covers_has_no_number(options: dict[str, Any]) -> None:
    model = get_peft_model(tiny_classifier("bert"), LoraConfig(**{"r": 2, "target_modules": ["query"], **options}))
    assert not has_rule(model, [n for n, p in model.named_parameters() if p.requires_grad])


def test_an_embeddings_lora_has_the_same_rule() -> None:
    model = get_peft_model(tiny_classifier("bert"), LoraConfig(r=3, target_modules=["word_embeddings"]))
    assert gauge(model) == Gauge(low_rank=9)
    assert has_rule(model, [n for n, p in model.named_parameters() if p.requires_grad])
