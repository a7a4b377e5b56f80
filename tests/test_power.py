"""The numerics of z^k: in float32 whatever surrounds it, at large k, at 0 and below, and a word where it runs away."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from propulsion import PropulsionConfig
from propulsion.harness.cell import run_cell
from propulsion.harness.scales import ScaleWatch, scale_range
from propulsion.tuner import Linear, scale_output
from tests.conftest import DEVICES, ComposeCell
from tests.tiny_models import tiny_batch, tiny_classifier

HALF = [torch.bfloat16, torch.float16]


def by_hand(y: torch.Tensor, z: torch.Tensor, degree: int, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output and both gradients from the formula, in float64, of what the half-precision tensors really hold."""
    y, z, grad = (tensor.detach().double().cpu() for tensor in (y, z, grad))
    scale = z**degree
    return y * scale, grad * scale, (grad * y).flatten(0, -2).sum(0) * degree * z ** (degree - 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("degree", [2, 15, 55])
@pytest.mark.parametrize("dtype", HALF)
def test_power_and_gradient_are_float32_under_autocast(device: str, degree: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4, 6, 32, generator=generator).to(device, dtype).requires_grad_()
    z = (1 + 0.02 * torch.randn(32, generator=generator)).to(device).requires_grad_()
    grad = torch.randn(4, 6, 32, generator=generator).to(device, dtype)
    with torch.autocast(device, dtype):
        out = scale_output(y, z, degree)
    assert out.dtype == dtype
    out.backward(grad)
    expected, grad_y, grad_z = by_hand(y, z, degree, grad)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double().cpu(), expected, rtol=step / 2 * 1.01, atol=0)  # rounded once
    assert y.grad is not None and z.grad is not None and z.grad.dtype == torch.float32
    torch.testing.assert_close(y.grad.double().cpu(), grad_y, rtol=step / 2 * 1.01, atol=0)
    # Of each term only the output was rounded, to half a step: the sum is off by no more than that of its terms.
    terms = degree * (grad.double() * y.detach().double()).abs().sum((0, 1)).cpu()
    assert ((z.grad.double().cpu() - grad_z).abs() <= step * terms * 4).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF)
def test_a_step_of_z_below_half_precision_is_not_lost_at_degree_55(device: str, dtype: torch.dtype) -> None:
    """z = 1.0005 is 1 in half precision; z^55 = 1.0279 is not."""
    y = torch.ones(1, 1, 4, device=device, dtype=dtype)
    z = torch.full((4,), 1.0005, device=device)
    with torch.autocast(device, dtype):
        out = scale_output(y, z, 55)
    expected = torch.tensor(1.0005**55).to(dtype)
    assert expected != 1
    assert torch.equal(out.cpu(), expected.expand(1, 1, 4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("degree", [1, 2, 3, 14, 15, 55])
def test_at_zero_and_below_the_power_is_that_of_the_reals(device: str, degree: int) -> None:
    """An odd degree keeps the sign, an even one drops it; at 0 a feature is closed and, from degree 2 on, z stays."""
    values = [0.0, -0.0, -1.0, -0.99, -1.02, 1.0]
    z = torch.tensor(values, device=device, dtype=torch.float64, requires_grad=True)
    y = torch.full((3, len(values)), 2.0, device=device, dtype=torch.float64, requires_grad=True)
    out = scale_output(y, z, degree)
    out.sum().backward()
    assert y.grad is not None and z.grad is not None
    for n, value in enumerate(values):
        assert out[0, n].item() == pytest.approx(2.0 * value**degree, rel=1e-12)
        assert (out[0, n].item() < 0) == (value < 0 and degree % 2 == 1)
        assert y.grad[0, n].item() == pytest.approx(value**degree, rel=1e-12)
        assert z.grad[n].item() == pytest.approx(3 * 2.0 * degree * value ** (degree - 1), rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("degree", [2, 55])
def test_a_closed_feature_stays_finite_in_half_precision(device: str, degree: int) -> None:
    """0.5^55 is below float16's numbers: the output is 0, and so is the gradient, never nan."""
    y = torch.randn(2, 3, 4, device=device, dtype=torch.float16, requires_grad=True)
    z = torch.tensor([0.0, 0.5, -0.5, 1e-30], device=device, requires_grad=True)
    scale_output(y, z, degree).float().sum().backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_scaling_in_fp16_at_degree_55(device: str) -> None:
    """A step whose gradients overflow is skipped and the factor halved; without overflow it is the float32 step."""
    torch.manual_seed(0)
    config = PropulsionConfig(degree=55, target_modules=["0"])
    found: dict[str, torch.Tensor] = {}
    batch = torch.randn(8, 16, device=device)
    for name, dtype in (("full", torch.float32), ("half", torch.float16)):
        torch.manual_seed(1)
        model: Any = get_peft_model(nn.Sequential(nn.Linear(16, 8)), config).to(device)
        z = next(p for p in model.parameters() if p.requires_grad)
        optimizer = torch.optim.SGD([z], lr=1e-4)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=dtype == torch.float16)
        with torch.autocast(device, dtype, enabled=dtype == torch.float16):
            loss = model(batch).float().pow(2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        found[name] = z.detach().clone()
        if dtype == torch.float16:
            before, factor = z.detach().clone(), scaler.get_scale()
            optimizer.zero_grad()
            with torch.autocast(device, dtype):
                loss = (model(batch) * 3e4).float().pow(2).mean()  # overflows in float16
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(z, before)
            assert scaler.get_scale() == factor / 2
    moved = (found["full"] - 1).abs().max()
    assert moved > 0
    torch.testing.assert_close(found["half"], found["full"], rtol=0, atol=0.02 * float(moved))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF)
def test_degree_55_trains_in_half_precision_as_in_float32(device: str, dtype: torch.dtype) -> None:
    """Twenty steps under autocast stay beside those in float32."""
    ends = []
    for enabled in (False, True):
        model = get_peft_model(tiny_classifier("llama"), PropulsionConfig(degree=55, task_type="SEQ_CLS")).to(device)
        batch = {name: value.to(device) for name, value in tiny_batch(8).items()}
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.0)
        scaler = torch.amp.GradScaler(device, enabled=enabled and dtype == torch.float16)
        losses = []
        for _ in range(20):
            with torch.autocast(device, dtype, enabled=enabled):
                loss = model(**batch).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.item())
        ends.append(losses)
    assert ends[0][-1] < 0.9 * ends[0][0]
    assert ends[1][-1] == pytest.approx(ends[0][-1], rel=0.05)


def test_the_range_is_that_of_every_power_in_the_model() -> None:
    model = get_peft_model(tiny_classifier("llama"), PropulsionConfig(degree=3, task_type="SEQ_CLS"))
    assert scale_range(model) == (1.0, 1.0)
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    with torch.no_grad():
        layers[0].propulsion_z["default"][2] = -1.5
        layers[-1].propulsion_z["default"][0] = 2.0
    assert scale_range(model) == (-3.375, 8.0)
    assert scale_range(tiny_classifier("bert")) is None


def test_the_range_of_several_vectors_is_that_of_what_they_pool_to() -> None:
    config = PropulsionConfig(degree=3, num_vectors=2, pooling="avg", task_type="SEQ_CLS")
    model = get_peft_model(tiny_classifier("llama"), config)
    layer = next(m for m in model.modules() if isinstance(m, Linear))
    with torch.no_grad():
        layer.propulsion_z["default"][:, 0] = torch.tensor([0.0, 2.0])
        layer.propulsion_z["default"][:, 1] = torch.tensor([1.0, 3.0])
    assert scale_range(model) == (1.0, 8.0)


def test_a_run_whose_scales_run_away_says_so_once_and_in_its_record(
    tiny: ComposeCell, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = ("method=propulsion", "training.learning_rate=0.2", "training.max_steps=6", "training.evaluations=3")
    entry, _ = run_cell(tiny(*fast, "training.schedule=constant", "training.warmup_ratio=0"))
    said = [line for line in capsys.readouterr().err.splitlines() if "z^k reaches" in line]
    assert len(said) == 1 and "a lower training.learning_rate or method.degree" in said[0]
    scales = entry["run"]["scales"]
    assert scales["extreme_at"] == 2 and (scales["lowest"] < 0.1 or scales["highest"] > 10)
    quiet, _ = run_cell(tiny("method=propulsion"))
    assert quiet["run"]["scales"]["extreme_at"] is None
    assert 0.9 < quiet["run"]["scales"]["lowest"] <= 1 <= quiet["run"]["scales"]["highest"] < 1.1
    assert "z^k reaches" not in capsys.readouterr().err
    plain, _ = run_cell(tiny("method=lora"))
    assert plain["run"]["scales"] is None


def test_the_watch_is_kept_in_checkpoints() -> None:
    watch = ScaleWatch("a cell")
    watch.lowest, watch.highest, watch.extreme_at = 0.5, 11.0, 40
    state = watch.state()
    again = ScaleWatch(**state["args"])
    for name, value in state["attributes"].items():
        setattr(again, name, value)
    assert again.as_record() == watch.as_record() and again.cell == "a cell"
    assert math.isclose(again.highest or 0, 11.0)
