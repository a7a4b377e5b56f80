"""The Propulsion layer and its life as a peft adapter: formulas, precision, merging, saving, several at once.

Every family of models is put through the same life in `test_tuner_families.py`.
"""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)
from transformers.pytorch_utils import Conv1D

import propulsion
from propulsion import PropulsionConfig, PropulsionModel
from propulsion.tuner import PropulsionLayer, scale_output
from tests.tiny_models import FAMILIES, HIDDEN, tiny_batch, tiny_classifier, tiny_config, tiny_language_model

LINEAR_NAMES = {
    "bert": ["query", "key", "value", "dense"],
    "roberta": ["query", "key", "value", "dense", "out_proj"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def wrapped(layer: nn.Module, adapter: str = "default", **config: Any) -> Any:
    """One layer inside a model, wrapped; the scaled layer itself."""
    model = nn.Sequential(layer)
    get_peft_model(model, PropulsionConfig(**config), adapter_name=adapter)
    return model[0]


def zs(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n.endswith(f"propulsion_z.{adapter}")}


def draw_z(model: nn.Module, seed: int = 0, spread: float = 0.02, adapter: str = "default") -> None:
    """Draws every z of one adapter around 1 and moves the trained head: an adapter as training leaves it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(f"propulsion_z.{adapter}"):
                parameter.copy_(1 + spread * torch.randn(parameter.shape, generator=generator))
            elif f"modules_to_save.{adapter}." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def logits(model: nn.Module, **batch: Any) -> torch.Tensor:
    return model(**(batch or tiny_batch())).logits


# ---------------------------------------------------------------- the formula


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    width=st.integers(1, 5),
    degree=st.integers(1, 60),
    seed=st.integers(0, 2**16),
    z_low=st.sampled_from([-1.5, 0.0, 0.97]),
)
def test_scale_output_is_the_power_by_repeated_products(
    shape: list[int], width: int, degree: int, seed: int, z_low: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
    z = z_low + (1.03 - z_low) * torch.rand(width, generator=generator, dtype=torch.float64)
    expected = y
    for _ in range(degree):
        expected = expected * z
    torch.testing.assert_close(scale_output(y, z, degree), expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("degree", [1, 2, 3, 15])
def test_negative_and_zero_z_have_the_gradient_of_the_power(degree: int) -> None:
    z = torch.tensor([-1.1, 0.0, 1.1], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64)
    scale_output(y, z, degree).sum().backward()
    expected = [
        2.0 * degree * (-1.1) ** (degree - 1),
        3.0 * (degree == 1),
        5.0 * degree * 1.1 ** (degree - 1),
    ]
    torch.testing.assert_close(z.grad, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("degree", [1, 2, 15, 55])
def test_gradcheck_in_double_precision(degree: int) -> None:
    layer = wrapped(nn.Linear(4, 3).double(), degree=degree, init_weights=False)
    z = layer.propulsion_z["default"]
    assert z.dtype == torch.float64
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, z: _with_z(layer, z)(x), (x, z))


def _with_z(layer: Any, z: torch.Tensor) -> Any:
    name = "propulsion_z.default"
    return lambda x: torch.func.functional_call(layer, {name: z}, (x,))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4),
    width_in=st.integers(1, 6),
    width_out=st.integers(1, 6),
    bias=st.booleans(),
    degree=st.integers(1, 55),
    seed=st.integers(0, 2**16),
)
def test_linear_layer_and_its_merge_equal_the_formula(
    rows: int, width_in: int, width_out: int, bias: bool, degree: int, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(width_in, width_out, bias=bias)
    weight, offset = (
        linear.weight.detach().clone(),
        None if linear.bias is None else linear.bias.detach().clone(),
    )
    layer = wrapped(linear, degree=degree, init_weights=False)
    x = torch.randn(rows, width_in)
    scale = layer.propulsion_z["default"].detach() ** degree
    expected = (x @ weight.T + (0 if offset is None else offset)) * scale
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        layer.merge()
        torch.testing.assert_close(linear(x), expected)
        layer.unmerge()
    assert torch.equal(linear.weight, weight)
    assert offset is None or torch.equal(linear.bias, offset)


def test_conv1d_layer_equals_the_formula() -> None:
    conv = Conv1D(6, 4)
    nn.init.normal_(conv.bias)
    layer = wrapped(conv, degree=3, init_weights=False)
    x = torch.randn(2, 5, 4)
    expected = (x @ conv.weight + conv.bias) * layer.propulsion_z["default"] ** 3
    torch.testing.assert_close(layer(x), expected)
    assert layer.nf == 6
    layer.merge(safe_merge=True)
    torch.testing.assert_close(conv(x), expected)


def test_embedding_layer_equals_the_formula_and_keeps_padding() -> None:
    table = nn.Embedding(7, 4, padding_idx=2)
    layer = wrapped(table, degree=3, init_weights=False)
    ids = torch.tensor([[0, 2, 6], [2, 1, 1]])
    expected = table.weight[ids] * layer.propulsion_z["default"] ** 3
    torch.testing.assert_close(layer(ids), expected)
    assert (layer.padding_idx, layer.num_embeddings, layer.embedding_dim) == (2, 7, 4)
    assert not layer(ids)[0, 1].any()
    layer.merge()
    torch.testing.assert_close(table(ids), expected)
    assert not table.weight[2].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_degree_one_on_linears_is_ia3_to_the_last_bit(family: str) -> None:
    names = LINEAR_NAMES[family]
    ours = get_peft_model(tiny_classifier(family), PropulsionConfig(degree=1, target_modules=names))
    fan_in_fan_out = family == "gpt2"
    theirs = get_peft_model(
        tiny_classifier(family),
        IA3Config(target_modules=names, feedforward_modules=[], fan_in_fan_out=fan_in_fan_out),
    )
    draw_z(ours)
    vectors = {n: p for n, p in theirs.named_parameters() if "ia3_l" in n}
    assert len(vectors) == len(zs(ours)) > 0
    for name, z in zs(ours).items():
        vectors[name.replace("propulsion_z", "ia3_l")].data.copy_(z.data.view(-1, 1))

    outputs = [model(**tiny_batch()) for model in (ours, theirs)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    for name, z in zs(ours).items():
        assert z.grad is not None and z.grad.any()
        assert torch.equal(z.grad, vectors[name.replace("propulsion_z", "ia3_l")].grad.flatten()), name


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_output_is_scaled_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    layer = wrapped(nn.Linear(4, 3).to(dtype), degree=15)
    z = layer.propulsion_z["default"]
    assert z.dtype == torch.float32
    z.data.copy_(torch.tensor([1.001, 0.999, 1.0]))  # all three are 1 in bf16
    x = torch.randn(64, 4, dtype=dtype)
    y = layer.base_layer(x)
    expected = (y.double() * torch.tensor([1.001, 0.999, 1.0]).double() ** 15).to(dtype)
    result = layer(x)
    assert result.dtype == dtype
    assert (result != y).any(dim=0).tolist() == [True, True, False]
    assert (result == expected).float().mean() > 0.98  # float32 may fall on the other side of a tie


def test_half_precision_gradient_is_summed_in_float32() -> None:
    layer = wrapped(nn.Linear(1, 1, bias=False).to(torch.bfloat16), degree=1)
    layer.base_layer.weight.data.fill_(1.0)
    layer(torch.ones(1000, 1, dtype=torch.bfloat16)).sum().backward()
    assert layer.propulsion_z["default"].grad.item() == 1000.0  # bf16 sums stop at 256


def test_autocast_keeps_the_scale_in_float32() -> None:
    layer = wrapped(nn.Linear(4, 3), degree=15)
    z = layer.propulsion_z["default"]
    z.data.copy_(torch.tensor([1.001, 0.999, 1.0]))
    x = torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.base_layer(x)
        result = layer(x)
    assert y.dtype == result.dtype == torch.bfloat16
    assert torch.equal(result, (y.float() * z.detach() ** 15).to(torch.bfloat16))
    result.float().sum().backward()
    assert z.grad.dtype == torch.float32


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_z_is_float32_on_a_bf16_model_however_it_gets_there(
    autocast_adapter_dtype: bool, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    def base() -> nn.Module:
        return tiny_classifier("llama").to(torch.bfloat16)

    options = {"autocast_adapter_dtype": autocast_adapter_dtype}
    config = PropulsionConfig(task_type="SEQ_CLS", init_weights=False)
    model = get_peft_model(base(), config, **options)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, **options)
    for each in (model, loaded, copy.deepcopy(loaded).to(torch.bfloat16), copy.deepcopy(loaded).half()):
        assert {z.dtype for z in zs(each).values()} == {torch.float32}
        assert {z.device.type for z in zs(each).values()} == {"cpu"}
    for name, z in zs(model).items():
        assert torch.equal(z, zs(loaded)[name])
    assert torch.equal(logits(model), logits(loaded))


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_half_precision_adapter_file_is_widened_on_loading(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = get_peft_model(tiny_classifier("bert"), PropulsionConfig(init_weights=False))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file)
    options = {"low_cpu_mem_usage": low_cpu_mem_usage, "autocast_adapter_dtype": False}
    loaded = PeftModel.from_pretrained(tiny_classifier("bert"), tmp_path, **options)
    for name, z in zs(loaded).items():
        assert torch.equal(z, zs(model)[name].to(torch.bfloat16).float())
        assert z.dtype == torch.float32 and not z.requires_grad


def test_casting_a_model_up_casts_z_up() -> None:
    layer = wrapped(nn.Linear(4, 3), degree=2).double()
    assert layer.propulsion_z["default"].dtype == torch.float64
    assert layer(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64


# ---------------------------------------------------------------- the life of an adapter


def test_adapter_is_an_exact_identity_at_the_start_and_when_disabled() -> None:
    base = tiny_classifier("bert")
    reference = logits(base)
    model = get_peft_model(base, PropulsionConfig())
    assert torch.equal(logits(model), reference)
    draw_z(model)
    assert not torch.equal(logits(model), reference)
    with model.disable_adapter():
        assert torch.equal(logits(model), reference)
    model.merge_adapter()
    with model.disable_adapter():  # unmerges first
        assert torch.equal(logits(model), reference)


def test_several_adapters_live_side_by_side_and_multiply() -> None:
    model = get_peft_model(tiny_classifier("bert"), PropulsionConfig(degree=2, target_modules=["query"]), "two")
    model.add_adapter("three", PropulsionConfig(degree=3, target_modules=["query", "key"]))
    assert all(z.requires_grad for z in zs(model, "two").values())
    assert not any(z.requires_grad for z in zs(model, "three").values())
    for seed, adapter in enumerate(("two", "three")):
        draw_z(model, seed, 0.2, adapter)
    alone = {}
    for adapter in ("two", "three"):
        model.set_adapter(adapter)
        alone[adapter] = logits(model)
        trainable = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
        assert trainable == {adapter}
    assert not torch.equal(alone["two"], alone["three"])

    model.base_model.set_adapter(["two", "three"])
    both = logits(model)
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    x = torch.randn(2, 3, HIDDEN)
    scale = layer.propulsion_z["two"] ** 2 * layer.propulsion_z["three"] ** 3
    torch.testing.assert_close(layer(x), layer.base_layer(x) * scale)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), both, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="unmerge them first"):
        model.delete_adapter("two")
    model.unmerge_adapter()
    assert torch.equal(logits(model), both)

    model.set_adapter("three")
    model.delete_adapter("two")
    assert not zs(model, "two")
    assert all("two" not in m.degree for m in model.modules() if isinstance(m, PropulsionLayer))
    assert torch.equal(logits(model), alone["three"])


def test_merging_one_adapter_after_another_equals_merging_both() -> None:
    model = get_peft_model(tiny_classifier("roberta").bfloat16(), PropulsionConfig(init_weights=False), "a")
    model.add_adapter("b", PropulsionConfig(init_weights=False, degree=2))
    together = copy.deepcopy(model)
    together.merge_adapter(["a", "b"])
    model.merge_adapter(["a"])
    with pytest.warns(UserWarning, match="additionally merging b"):
        model.merge_adapter(["b"])
    layers = zip(model.modules(), together.modules(), strict=True)
    weights = [(one.weight, two.weight) for one, two in layers if isinstance(one, PropulsionLayer)]
    assert weights and all(torch.equal(one, two) for one, two in weights)


def test_unmerge_is_exact_for_zero_z_and_in_half_precision() -> None:
    layer = wrapped(nn.Linear(4, 3).to(torch.bfloat16), degree=2)
    layer.propulsion_z["default"].data.copy_(torch.tensor([0.0, -1.7, 1.013]))
    before = copy.deepcopy(layer.base_layer.state_dict())
    layer.merge()
    assert not layer.base_layer.weight[0].any()
    with pytest.warns(UserWarning, match="already merged"):
        layer.merge()  # changes nothing
    layer.unmerge()
    assert all(torch.equal(before[n], t) for n, t in layer.base_layer.state_dict().items())
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_unmerge_follows_a_model_that_was_cast_while_merged() -> None:
    layer = wrapped(nn.Linear(4, 3), degree=2, init_weights=False)
    weight = layer.base_layer.weight.detach().clone()
    layer.merge()
    layer.double()
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, weight.double())


def test_merged_model_counts_and_saves_no_parameter_twice() -> None:
    model = get_peft_model(tiny_classifier("bert"), PropulsionConfig())
    keys, count = list(model.state_dict()), sum(p.numel() for p in model.parameters())
    model.merge_adapter()
    assert list(model.state_dict()) == keys
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_safe_merge_refuses_what_is_not_finite_and_changes_nothing(broken: float) -> None:
    layer = wrapped(nn.Linear(4, 3), degree=15)
    layer.propulsion_z["default"].data[1] = broken
    weight = layer.base_layer.weight
    with pytest.raises(ValueError, match="NaNs or infinities"):
        layer.merge(safe_merge=True)
    assert layer.base_layer.weight is weight and not layer.merged


@pytest.mark.parametrize("ties", [{}, {"tie_word_embeddings": True}])
def test_merging_a_tied_embedding_unties_it(ties: dict[str, bool], tmp_path: Path) -> None:
    family = "llama" if ties else "gpt2"
    base = tiny_language_model(family, **ties)
    batch = {"input_ids": tiny_batch()["input_ids"]}
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    model = get_peft_model(base, PropulsionConfig(target_modules="embeddings", degree=3))
    draw_z(model)
    expected = logits(model, **batch)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, **batch), expected, rtol=0, atol=1e-6)
    model.unmerge_adapter()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    with pytest.warns(UserWarning, match="no longer tied"):
        merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, **batch), expected, rtol=0, atol=1e-6)


def test_merging_t5_unties_its_embeddings_too() -> None:
    base = tiny_language_model("t5")
    batch = {"input_ids": tiny_batch()["input_ids"], "decoder_input_ids": tiny_batch()["input_ids"]}
    with pytest.warns(UserWarning, match="left out shared"):
        model = get_peft_model(base, PropulsionConfig(target_modules="embeddings"))
    draw_z(model)
    expected = logits(model, **batch)
    with pytest.warns(UserWarning, match="untied the embeddings"):
        merged = model.merge_and_unload()
    assert merged.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(merged, **batch), expected, rtol=0, atol=1e-5)


def tiny_bart() -> Any:
    halves = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
    sizes = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in halves.items()}
    return AutoConfig.for_model("bart", vocab_size=40, d_model=HIDDEN, **sizes)


@pytest.mark.parametrize(
    ("family", "auto"),
    [("bart", AutoModelForSeq2SeqLM), ("bert", AutoModelForMaskedLM), ("deberta-v2", AutoModelForMaskedLM)],
)
@pytest.mark.filterwarnings("ignore")
def test_ties_that_outlive_a_merge_outlive_the_file_too(family: str, auto: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = auto.from_config(tiny_bart() if family == "bart" else tiny_config(family)).eval()
    head = base.get_output_embeddings()
    with torch.no_grad():
        for bias in (head.bias, getattr(base, "final_logits_bias", None)):
            if bias is not None:
                bias.normal_()
    model = get_peft_model(base, PropulsionConfig(target_modules="embeddings", degree=3))
    draw_z(model)
    batch = {"input_ids": tiny_batch()["input_ids"]}
    expected = logits(model, **batch)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, **batch), expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, **batch), logits(merged, **batch))


def test_layers_that_cannot_be_merged_say_why_and_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4, max_norm=1.0))
    adapted = get_peft_model(model, PropulsionConfig(init_weights=False))
    with pytest.raises(ValueError, match="this Embedding: its max_norm"):
        adapted.merge_adapter()
    assert not model[0].merged

    under_ia3 = nn.Sequential(nn.Linear(4, 4))
    get_peft_model(under_ia3, IA3Config(target_modules=["0"], feedforward_modules=[]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of the second time
        adapted = get_peft_model(under_ia3, PropulsionConfig())
    with pytest.raises(ValueError, match="another method"):
        adapted.merge_adapter()


def test_quantized_linear_is_scaled_but_not_merged() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, UserWarning))  # the module is on its way out of torch
        quantized = torch.ao.nn.quantized.dynamic.Linear(4, 3)
        x = torch.randn(5, 4)
        y = quantized(x)
        layer = wrapped(quantized, degree=2, init_weights=False)
    z = layer.propulsion_z["default"]
    assert (layer.in_features, layer.out_features, z.dtype) == (4, 3, torch.float32)
    assert torch.equal(layer(x), y * z**2)
    layer(x).sum().backward()
    torch.testing.assert_close(z.grad, 2 * z.detach() * y.sum(0))
    with pytest.raises(ValueError, match="DynamicQuantizedLinear: its weight is packed"):
        layer.merge()


def test_int8_weight_is_not_merged() -> None:
    linear = nn.Linear(4, 3)
    layer = wrapped(linear)
    linear.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"quantized \(torch.int8\)"):
        layer.merge()


def test_saved_and_reloaded_adapter_gives_the_same_outputs_from_a_few_kb(tmp_path: Path) -> None:
    # an embedding matrix of 512 kB, which must not be saved
    wide = {"vocab_size": 8192}
    model = get_peft_model(tiny_classifier("llama", **wide), PropulsionConfig(degree=7, task_type="SEQ_CLS"))
    draw_z(model)
    model.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 16_000
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(key.endswith(("propulsion_z", "score.weight")) for key in saved)
    assert any("embed_tokens" in key for key in saved)
    loaded = PeftModel.from_pretrained(tiny_classifier("llama", **wide), tmp_path)
    assert loaded.peft_config["default"].degree == 7
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    trainable = PeftModel.from_pretrained(tiny_classifier("llama", **wide), tmp_path, is_trainable=True)
    assert all(z.requires_grad for z in zs(trainable).values())


@pytest.mark.parametrize(("bias", "norms"), [("propulsion_only", False), ("all", True), ("none", None)])
def test_trained_biases_are_those_asked_for_and_are_saved(bias: str, norms: bool | None, tmp_path: Path) -> None:
    model = get_peft_model(tiny_classifier("roberta"), PropulsionConfig(degree=5, bias=bias))
    biases = {n: p for n, p in model.named_parameters() if n.endswith("bias") and p.requires_grad}
    assert any("LayerNorm" in name for name in biases) == bool(norms)
    assert any("query.base_layer.bias" in name for name in biases) == (norms is not None)
    draw_z(model)
    with torch.no_grad():
        for parameter in biases.values():
            parameter.add_(0.3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_classifier("roberta"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.allclose(logits(merged), logits(model), atol=1e-6)


@pytest.mark.parametrize("targets", [["embed_tokens", "lm_head"], ".*(embed_tokens|lm_head)", "all"])
def test_targeted_embeddings_are_not_saved(targets: Any, tmp_path: Path) -> None:
    base = tiny_language_model("llama", vocab_size=8192)
    model = get_peft_model(base, PropulsionConfig(target_modules=targets))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rpartition(".")[2] for key in saved} == {"propulsion_z"}
    assert sum(t.numel() for t in saved.values()) == sum(z.numel() for z in zs(model).values())


def test_saved_adapter_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = get_peft_model(tiny_classifier("roberta"), PropulsionConfig(task_type="SEQ_CLS"))
    draw_z(model)
    model.save_pretrained(tmp_path / "adapter")
    model.unload().save_pretrained(tmp_path / "base")
    script = (
        "import sys, torch, propulsion\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "from tests.tiny_models import tiny_batch\n"
        "torch.set_num_threads(1)\n"  # as in conftest.py, for the same order of summation
        "base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1] + '/base').eval()\n"
        "model = PeftModel.from_pretrained(base, sys.argv[1] + '/adapter')\n"
        "torch.save(model(**tiny_batch()).logits.detach(), sys.argv[1] + '/logits.pt')\n"
    )
    expected = logits(PeftModel.from_pretrained(tiny_classifier("roberta"), tmp_path / "adapter"))
    root = Path(propulsion.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_a_short_training_moves_z_and_only_z() -> None:
    model = get_peft_model(tiny_classifier("roberta"), PropulsionConfig(degree=15))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(30):
        loss = model(**tiny_batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(zs(model))


def test_compiles_without_a_graph_break() -> None:
    layer = wrapped(nn.Linear(4, 3), degree=15, init_weights=False)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, z = torch.randn(2, 5, 4), layer.propulsion_z["default"]
    results = []
    for each in (layer, compiled):
        z.grad = None
        y = each(x)
        y.sum().backward()
        results.append((y.detach(), z.grad))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager)


# ---------------------------------------------------------------- config and registration


@pytest.mark.parametrize("degree", [0, -1, 1.5, 2.0, True, "15", None])
def test_degree_is_an_integer_of_at_least_one(degree: Any) -> None:
    with pytest.raises(ValueError, match="degree must be an integer of at least 1"):
        PropulsionConfig(degree=degree)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ""}, "target_modules is empty"),
        ({"target_modules": ".*query", "layers_to_transform": 1}, "regex"),
        ({"layers_pattern": "layers"}, "layers_pattern needs"),
        ({"bias": "some"}, "bias must be one of none, all, propulsion_only"),
    ],
)
def test_config_refuses_contradictions(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PropulsionConfig(**settings)


def test_registration_is_on_import_and_can_be_repeated() -> None:
    tables = (
        peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    )
    before = [dict(table) for table in tables]
    assert [table["PROPULSION"] for table in tables] == [PropulsionConfig, PropulsionModel, "propulsion_"]
    importlib.reload(propulsion.tuner)
    assert [dict(table) for table in tables] == before
    config = peft.get_peft_config({"peft_type": "PROPULSION", "degree": 3})
    assert isinstance(config, PropulsionConfig) and config.degree == 3


def test_callers_config_is_left_as_it_was_and_can_be_used_again() -> None:
    config = PropulsionConfig(target_modules="attention")
    bert = get_peft_model(tiny_classifier("bert"), config)
    llama = get_peft_model(tiny_classifier("llama"), config)
    assert config.target_modules == "attention"
    assert all(name.endswith(("query", "key", "value")) for name in bert.peft_config["default"].target_modules)
    assert all(name.endswith("_proj") for name in llama.peft_config["default"].target_modules)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out_proj = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.attn(x, x, x)[0])


@pytest.mark.parametrize(
    ("config", "excluded"),
    [({}, {"attn.out_proj"}), ({"exclude_modules": "nothing"}, r"(?:nothing)|attn\.out_proj")],
)
def test_a_name_at_the_top_is_not_taken_for_an_ending(config: dict[str, Any], excluded: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"left out attn\.out_proj") as warned:
        model = get_peft_model(_Attention(), PropulsionConfig(**config))
    assert not any("no modules were excluded" in str(warning.message) for warning in warned)
    only = ["base_model.model.out_proj.propulsion_z.default"]
    assert list(zs(model)) == only
    assert model.peft_config["default"].exclude_modules == excluded
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(_Attention(), tmp_path)
    assert list(zs(again)) == only and again.peft_config["default"].exclude_modules == excluded


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torchs_encoder_evaluates_as_it_trains(activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation=activation, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    get_peft_model(encoder, PropulsionConfig(target_modules=["linear1", "linear2"], init_weights=False))
    x = torch.randn(2, 5, 8)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.no_grad():
        outputs = [encoder.train(mode)(x, src_key_padding_mask=padding) for mode in (True, False)]
    assert torch.equal(outputs[0][~padding], outputs[1][~padding])


@pytest.mark.parametrize(
    ("task", "auto", "head"),
    [
        ("TOKEN_CLS", AutoModelForTokenClassification, ["classifier", "score"]),
        ("QUESTION_ANS", AutoModelForQuestionAnswering, ["qa_outputs"]),
    ],
)
@pytest.mark.parametrize("given", [None, [], ["pooler"]])
def test_heads_of_tokens_and_answers_are_trained_whole(
    task: str, auto: Any, head: list[str], given: list[str] | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = auto.from_config(tiny_config("bert")).eval()
    fresh = copy.deepcopy(base)
    model = get_peft_model(base, PropulsionConfig(task_type=task, modules_to_save=copy.copy(given))).eval()
    assert model.peft_config["default"].modules_to_save == [*(given or []), *head]
    assert not any(f"{head[0]}.propulsion_z" in name for name in zs(model))
    assert any(f"{head[0]}.modules_to_save.default" in n for n, p in model.named_parameters() if p.requires_grad)
    draw_z(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(fresh, tmp_path).eval()
    batch = {"input_ids": tiny_batch()["input_ids"]}
    with torch.no_grad():
        assert torch.equal(again(**batch)[0], model(**batch)[0])


def test_unsupported_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot scale a LayerNorm"):
        PropulsionLayer(nn.LayerNorm(4), "default", PropulsionConfig())
