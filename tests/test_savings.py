"""Activations computed again, TF32, the attention that is asked for: same gradients, recorded, refused in one line."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from baselines import apply_method
from propulsion.harness import devices, record
from propulsion.harness.backbones import attention_of, load_model
from propulsion.harness.cell import run_cell
from propulsion.harness.errors import UserError
from propulsion.harness.memory import checkpoint_activations
from propulsion.harness.tables.conditions import measurement
from tests.conftest import DEVICES, ComposeCell, compose_settings, names, pytest_configure

FAMILIES = ["roberta_base", "deberta_v3_base", "llama_7b"]
METHODS = ["full", "head", "bitfit", "lora", "ia3", "propulsion", "adalora", "prompt_tuning"]
CASES = [("minilm", method) for method in names("method") if method != "prefix_tuning"]  # refused
CASES += [(family, method) for family in FAMILIES for method in METHODS if (family, method) != ("llama_7b", "bitfit")]


def gradients(backbone: str, method: str, device: str, checkpointed: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Every trained parameter's gradient of one step with dropout, and the bytes that the forward pass kept."""
    settings = compose_settings("experiment=tiny", f"backbone={backbone}", f"method={method}")
    torch.manual_seed(0)
    model, _ = load_model(settings.backbone, settings.task, 1)
    tuned: Any = apply_method(model, settings.method, settings.backbone).to(device).train()
    if checkpointed:
        checkpoint_activations(tuned)
    ids = torch.randint(4, 200, (3, 9), generator=torch.Generator().manual_seed(0)).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0], device=device)}
    torch.manual_seed(1)
    own, kept = {p.untyped_storage().data_ptr() for p in tuned.parameters()}, 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in own:
            kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = tuned(**batch).loss
    forward = kept
    loss.backward()
    found = {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}
    missing = [name for name, grad in found.items() if grad is None and "rel_embeddings" not in name]
    assert not missing, f"no gradient for {missing}"
    return {name: grad for name, grad in found.items() if grad is not None}, forward


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("backbone", "method"), CASES, ids=["-".join(case) for case in CASES])
def test_checkpointed_activations_give_the_same_gradients(backbone: str, method: str, device: str) -> None:
    """The frozen embedding's output needs no gradient: the reentrant kind would lose those of the first block."""
    plain, kept = gradients(backbone, method, device, checkpointed=False)
    again, less = gradients(backbone, method, device, checkpointed=True)
    assert plain.keys() == again.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(again[name], expected, rtol=1e-5, atol=1e-7)
    assert any(bool(grad.abs().sum() > 0) for grad in plain.values())
    if method not in ("head",):  # which keeps nothing of the backbone
        assert less < kept / 2


def test_checkpointing_leaves_the_scores_and_the_key_alone_and_is_named(tiny: ComposeCell, tmp_path: Any) -> None:
    entries = [
        run_cell(tiny("method=lora", f"training.gradient_checkpointing={on}", f"results_dir={tmp_path / on}"))[0]
        for on in ("false", "true")
    ]
    assert entries[0]["key"] == entries[1]["key"]
    histories = [[(e["step"], e["loss"], e["scores"]) for e in entry["eval"]["history"]] for entry in entries]
    assert histories[0] == histories[1]
    named = ["activations computed again" in measurement(entry) for entry in entries]
    assert named == [False, True]


def test_checkpointing_and_prefix_tuning_exclude_each_other(tiny: ComposeCell) -> None:
    with pytest.raises(UserError, match="not with prefix tuning"):
        run_cell(tiny("method=prefix_tuning", "training.gradient_checkpointing=true"))


def test_checkpointing_and_fused_layers_exclude_each_other(tiny: ComposeCell) -> None:
    settings = tiny("training.fast_path=on", "training.gradient_checkpointing=true")
    with pytest.raises(UserError, match=r"with training\.fast_path=on use training\.lean=true"):
        run_cell(settings)
    entry, _ = run_cell(tiny("training.fast_path=auto", "training.gradient_checkpointing=true"))
    assert entry["cost"]["fast_path"] == "plain: activations are checkpointed"


def test_tf32_is_off_unless_asked_for_and_put_back(tiny: ComposeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    with devices.tf32(True):
        assert products.fp32_precision == "tf32"
        with devices.tf32(False):
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "tf32"
    assert products.fp32_precision == before
    base, fast = tiny(), tiny("training.tf32=true")
    assert record.cell_key(base.config, "") != record.cell_key(fast.config, "")
    entry, _ = run_cell(fast)
    assert entry["status"] == "success" and entry["run"]["config"]["training"]["tf32"] is True
    assert "tf32 products" in measurement(entry)
    assert products.fp32_precision == before


@pytest.mark.gpu
def test_tf32_changes_products_on_a_gpu() -> None:
    a, b = torch.randn(2, 256, 256, device="cuda").unbind()
    exact = a.double() @ b.double()
    errors = []
    for on in (False, True):
        with devices.tf32(on):
            errors.append(float((a @ b - exact).abs().max()))
    assert errors[0] < 1e-3 < errors[1]


@pytest.mark.parametrize(
    ("backbone", "asked", "found"), [("deberta_v3_base", "auto", "eager"), ("llama_7b", "eager", "eager")]
)
def test_the_attention_is_recorded_and_can_be_chosen(tiny: ComposeCell, backbone: str, asked: str, found: str) -> None:
    entry, _ = run_cell(tiny(f"backbone={backbone}", f"backbone.attention={asked}", "training.max_steps=1"))
    assert entry["env"]["attention"] == found


@pytest.mark.parametrize("backbone", ["roberta_base", "llama_7b"])
def test_attentions_give_the_same_logits(backbone: str) -> None:
    logits = []
    for attention in ("sdpa", "eager"):
        settings = compose_settings("experiment=tiny", f"backbone={backbone}", f"backbone.attention={attention}")
        torch.manual_seed(0)
        model, _ = load_model(settings.backbone, settings.task, 1)
        assert attention_of(model) == attention
        ids = torch.arange(4, 20).reshape(2, 8)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        with torch.no_grad():
            logits.append(model.eval()(input_ids=ids, attention_mask=mask).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_an_attention_that_is_not_there_is_refused(tiny: ComposeCell) -> None:
    with pytest.raises(UserError, match=r"backbone\.attention=sdpa on deberta_v3_base: .*; use auto"):
        run_cell(tiny("backbone=deberta_v3_base", "backbone.attention=sdpa"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"backbone\.attention=flash_attention_2 on llama_7b: .*; use auto"):
            run_cell(tiny("backbone=llama_7b", "backbone.attention=flash_attention_2"))
    with pytest.raises(UserError, match=r"backbone\.attention=fast: use auto \| sdpa"):
        tiny("backbone.attention=fast")


def test_precisions_that_cannot_be_are_refused(tiny: ComposeCell) -> None:
    with pytest.raises(UserError, match=r"training\.precision=fp32 with backbone\.dtype=bfloat16"):
        tiny("backbone.dtype=bfloat16", "training.precision=fp32")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="fp16 needs a CUDA GPU"):
            run_cell(tiny("training.precision=fp16"))


def test_a_cell_in_bf16_with_checkpointing(tiny: ComposeCell) -> None:
    """On the GPU where there is one: `make test-gpu` leaves it to `make test`."""
    entry, _ = run_cell(tiny("backbone=llama_7b", "backbone.dtype=bfloat16", "training.gradient_checkpointing=true"))
    assert entry["status"] == "success", entry["error"]
    assert entry["env"]["precision"] == "bf16" and entry["env"]["attention"] == "sdpa"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_tests_alone_are_refused_in_one_line_without_one(request: pytest.FixtureRequest) -> None:
    for marks, stops in (("gpu", pytest.raises(pytest.UsageError, match="no CUDA GPU here")), ("", nullcontext())):
        with stops, pytest.MonkeyPatch.context() as patch:
            patch.setattr(request.config.option, "markexpr", marks)
            pytest_configure(request.config)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_cell_with_each_attention_on_a_gpu(tiny: ComposeCell, attention: str) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    settings = ("backbone=llama_7b", "backbone.dtype=bfloat16", f"backbone.attention={attention}")
    entry, _ = run_cell(tiny(*settings, "backbone.architecture.hidden_size=64"))
    assert entry["status"] == "success", entry["error"]
    assert entry["env"]["attention"] == attention


@pytest.mark.gpu
def test_fp16_with_gradient_scaling_trains_at_degree_55(tiny: ComposeCell) -> None:
    options = ("training.precision=fp16", "method.degree=55", "training.learning_rate=3e-4", "training.max_steps=20")
    entry, _ = run_cell(tiny(*options))
    assert entry["status"] == "success", entry["error"]
    assert entry["env"]["precision"] == "fp16"
    assert 0.5 < entry["run"]["scales"]["lowest"] < 1 < entry["run"]["scales"]["highest"] < 2
