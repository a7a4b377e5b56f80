"""Backbones in 8 and 4 bits: z on top, saved, loaded, and merged into a copy in full only."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from baselines import apply_method
from propulsion.harness import quantization
from propulsion.harness.backbones import load_model
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.memory import checkpoint_activations
from propulsion.tuner import PropulsionLayer, merge_dequantized
from tests.conftest import DEVICES, ComposeCell, compose_settings

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason='needs bitsandbytes: pip install ".[quantized]"'
)
BITS = ["8bit", "4bit"]
SMALL = ("experiment=tiny", "backbone=llama_7b", "backbone.architecture.hidden_size=64")


def model_of(bits: str, device: str = "cpu", method: str = "propulsion") -> tuple[Any, Any]:
    """A tiny quantized LLaMA with z on it, z drawn around 1, and its settings."""
    settings = compose_settings(*SMALL, f"backbone.quantize={bits}", f"method={method}")
    torch.manual_seed(0)
    model, _ = load_model(settings.backbone, settings.task, 1)
    tuned: Any = apply_method(model, settings.method, settings.backbone).to(device).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, z in tuned.named_parameters():
            if "propulsion_z" in name:
                z += 0.02 * torch.randn(z.shape, generator=draw).to(z.device)
    return tuned, settings


def batch(device: str = "cpu") -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 200, (3, 9), generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0], device=device)}


@needs_bitsandbytes
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", BITS)
def test_z_scales_quantized_linears_and_gets_its_gradient(bits: str, device: str) -> None:
    tuned, _ = model_of(bits, device)
    layers = [m for m in tuned.modules() if isinstance(m, PropulsionLayer)]
    kinds = {type(layer.base_layer).__name__ for layer in layers}
    assert kinds == {"Embedding", {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits]}
    x = torch.randn(5, 64, device=device)
    layer = next(layer for layer in layers if type(layer.base_layer).__name__ != "Embedding")
    with torch.no_grad():
        expected = layer.base_layer(x) * layer.propulsion_z["default"] ** 15
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    tuned.train()
    tuned(**batch(device)).loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}


@needs_bitsandbytes
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_the_same_after_an_evaluation(bits: str, device: str) -> None:
    """On a CPU bitsandbytes would pack 4-bit weights at the first one, and then give no gradient."""
    tuned, _ = model_of(bits, device)
    found = []
    for _ in range(2):
        tuned.train()(**batch(device)).loss.backward()
        found.append({name: p.grad.clone() for name, p in tuned.named_parameters() if p.requires_grad})
        tuned.zero_grad()
        with torch.no_grad():
            tuned.eval()(**batch(device))
    for name, expected in found[0].items():
        assert expected.abs().sum() > 0
        torch.testing.assert_close(found[1][name], expected)


@needs_bitsandbytes
@pytest.mark.parametrize("method", ["propulsion", "propulsion_paper", "lora", "ia3"])
@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_on_a_quantized_model_is_trained_saved_and_loaded(bits: str, method: str, tmp_path: Path) -> None:
    tuned, settings = model_of(bits, method=method)
    checkpoint_activations(tuned)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = tuned.train()(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        before = tuned.eval()(**batch()).logits
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    torch.manual_seed(0)
    base, _ = load_model(settings.backbone, settings.task, 1)
    again = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch()).logits, before)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 40_000


@needs_bitsandbytes
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_merging_refuses_and_on_request_goes_into_a_copy_in_full(bits: str, packed: bool, tmp_path: Path) -> None:
    """Also where bitsandbytes has packed the weights for inference on this CPU, if it is of that kind."""
    tuned, _ = model_of(bits)
    with torch.no_grad():
        before = tuned(**batch()).logits
        if packed:
            for module in tuned.modules():
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = type(module)(32, 32).support_avx512bf16_for_cpu
            tuned(**batch())
        plain = model_of(bits)[0].unload()(**batch()).logits
    with pytest.raises(ValueError, match="its weight is quantized"):
        tuned.merge_and_unload()
    merged: Any = merge_dequantized(tuned)
    assert not any(type(p).__name__ in ("Params4bit", "Int8Params") for p in merged.parameters())
    with torch.no_grad():
        after = merged(**batch()).logits
    # 8-bit layers also round their input, which the copy does not; packing rounds each block's scale to bf16
    close, far = (after - before).abs().max(), (plain - before).abs().max()
    assert close < (0.02 if bits == "8bit" or packed else 1e-5) and close < far / 5
    merged.save_pretrained(tmp_path)  # an ordinary model again
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_a_merged_copy_has_no_quantized_layer_left_where_only_some_are_scaled(bits: str, tmp_path: Path) -> None:
    """Else its config, which says nothing of bits any more, would not fit its weights."""
    tuned, _ = model_of(bits, method="propulsion_attn")
    with torch.no_grad():
        before = tuned(**batch()).logits
    merged: Any = merge_dequantized(tuned)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(again(**batch()).logits, before, rtol=0, atol=0.02 if bits == "8bit" else 1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("method", ["propulsion", "lora", "ia3"])
@pytest.mark.parametrize("bits", BITS)
def test_a_cell_trains_on_a_quantized_backbone(tiny: ComposeCell, bits: str, method: str) -> None:
    often = ("training.checkpoint_seconds=0", "training.learning_rate=0.01")
    entry, _ = run_cell(tiny(*SMALL[1:3], f"method={method}", f"backbone.quantize={bits}", *often))
    assert entry["status"] == "success", entry["error"]
    assert entry["run"]["config"]["backbone"]["quantize"] == bits
    losses = [evaluation["loss"] for evaluation in entry["eval"]["history"]]
    assert len(set(losses)) == len(losses) > 1  # it went on after the first evaluation


@pytest.mark.parametrize("method", ["full", "bitfit", "head"])
def test_methods_without_an_adapter_are_refused(
    tiny: ComposeCell, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "check_installed", lambda spec: None)
    backbone = "roberta_base" if method == "bitfit" else "llama_7b"
    with pytest.raises(UserError, match=f"method {method} puts no adapter on the backbone, and the weights of"):
        run_cell(tiny(f"backbone={backbone}", f"method={method}", "backbone.quantize=8bit"))


def test_without_bitsandbytes_it_says_what_to_install(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    spec = compose_settings(*SMALL, "backbone.quantize=4bit").backbone
    with pytest.raises(UserError, match=r'backbone\.quantize=4bit needs bitsandbytes: pip install "\.\[quantized\]"'):
        quantization.check_installed(spec)


def test_the_choice_is_part_of_the_key(tiny: ComposeCell) -> None:
    from propulsion.harness import record

    keys = {record.cell_key(tiny(f"backbone.quantize={bits}").config, "") for bits in ("none", *BITS)}
    assert len(keys) == 3
