"""The scaled layer's own gradient: what it keeps, every z, half precision, checkpointing, compiling, refusing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from propulsion import PropulsionConfig
from propulsion.tuner import scale_output
from tests.tiny_models import tiny_batch, tiny_classifier


def plain(y: torch.Tensor, z: torch.Tensor, degree: int) -> torch.Tensor:
    """The paper's formula with autograd's own rules."""
    return (y * z.pow(degree)).to(y.dtype)


def gradients(function: object, y: torch.Tensor, z: torch.Tensor, degree: int, weight: torch.Tensor) -> list:
    y, z = y.clone().requires_grad_(), z.clone().requires_grad_()
    out = function(y, z, degree)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), (y, z))]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    width=st.integers(1, 5),
    degree=st.integers(1, 60),
    seed=st.integers(0, 2**16),
    z_low=st.sampled_from([-1.5, -0.2, 0.97]),
    zeros=st.booleans(),
)
def test_gradients_equal_those_of_the_formula(
    shape: list[int], width: int, degree: int, seed: int, z_low: float, zeros: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    y, weight = (torch.randn(*shape, width, generator=generator, dtype=torch.float64) for _ in range(2))
    z = z_low + (1.03 - z_low) * torch.rand(width, generator=generator, dtype=torch.float64)
    if zeros:
        z[0] = 0.0
    ours, formula = (gradients(f, y, z, degree, weight) for f in (scale_output, plain))
    for mine, expected in zip(ours, formula, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("degree", [1, 2, 3, 15, 16])
@pytest.mark.parametrize("value", [-1.1, -0.0, 0.0, 1e-30, 1e-3, 1.0])
def test_every_z_in_single_precision(degree: int, value: float) -> None:
    torch.manual_seed(0)
    y, weight, z = torch.randn(50, 3), torch.randn(50, 3), torch.full((3,), value)
    ours = gradients(scale_output, y, z, degree, weight)
    formula = gradients(plain, y.double(), z.double(), degree, weight.double())
    for mine, expected in zip(ours, formula, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=2e-5, atol=1e-12)


def test_a_run_axis_on_z_gives_every_run_its_own_gradient() -> None:
    torch.manual_seed(0)
    y, weight = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    z = 1 + 0.1 * torch.randn(2, 1, 1, 5).double()
    packed = gradients(scale_output, y, z, 15, weight)
    for run in range(2):
        alone = gradients(scale_output, y[run], z[run].flatten(), 15, weight[run])
        for together, single in zip(packed, alone, strict=True):
            torch.testing.assert_close(together[run].reshape(single.shape), single)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_differs_from_the_formula_by_rounding_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y, weight, z = torch.randn(4000, 6).to(dtype), torch.rand(4000, 6).to(dtype), 1 + 0.02 * torch.randn(6)
    ours, formula = (gradients(f, y, z, 15, weight) for f in (scale_output, plain))
    assert [t.dtype for t in ours] == [dtype, dtype, torch.float32]
    assert torch.equal(ours[0], formula[0]) and torch.equal(ours[1], formula[1])
    scale = (weight.float() * y.float()).abs().sum(0) * 15
    assert ((ours[2] - formula[2]).abs() / scale).max() < 1e-3


def saved_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """What a forward pass keeps for its backward, each storage once, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(x)
    assert out.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in parameters)


def test_a_scaled_layer_keeps_its_output_and_nothing_of_that_size_beside_it() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
    tuned = get_peft_model(model, PropulsionConfig(target_modules=["0"], degree=15))
    x = torch.randn(512, 16)
    output, vectors = 512 * 8 * 4, 3 * 8 * 4
    # the scaled output and tanh's own result; the unscaled one would be a third
    assert 2 * output <= saved_bytes(tuned, x) <= 2 * output + vectors


def test_a_second_derivative_is_refused_clearly() -> None:
    y, z = torch.randn(3, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    (grad,) = torch.autograd.grad(scale_output(y, z, 3).square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def test_per_row_gradients_through_torch_func() -> None:
    torch.manual_seed(0)
    y, z = torch.randn(6, 4).double(), 1 + 0.1 * torch.randn(4).double()
    rows = torch.func.vmap(torch.func.grad(lambda z, y: scale_output(y, z, 5).sum()), (None, 0))(z, y)
    torch.testing.assert_close(rows, 5 * y * z**4)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).mul_(2.0).add_(1.0).relu_()


@pytest.mark.parametrize("degree", [2, 15])
@pytest.mark.parametrize("value", [0.0, 1.1])
def test_an_output_changed_in_place_is_refused_or_trained_exactly(degree: int, value: float) -> None:
    torch.manual_seed(0)
    model = get_peft_model(InPlace().double(), PropulsionConfig(degree=degree))
    layer = model.base_model.model.linear
    z, x = layer.propulsion_z["default"], torch.randn(20, 4).double()
    z.data[0] = value
    with pytest.raises(RuntimeError, match=r"changed in place .*allow_in_place\(\)"):
        model(x).sum().backward()
    model.allow_in_place()
    model(x).sum().backward()
    out = (2 * plain(layer.base_layer(x), z, degree) + 1).relu()
    (expected,) = torch.autograd.grad(out.sum(), z)
    torch.testing.assert_close(z.grad, expected)
    model.add_adapter("b", PropulsionConfig(target_modules=["linear"], degree=degree))
    assert layer.keeps_unscaled


def test_other_errors_of_a_backward_pass_are_torchs_own() -> None:
    out = scale_output(torch.randn(3, 4), torch.ones(4, requires_grad=True), 3).sum()
    out.backward()
    with pytest.raises(RuntimeError, match=r"^Trying to backward through the graph a second time"):
        out.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    z = nn.Parameter(torch.tensor([0.9, 1.1, 0.0]))
    x = torch.randn(5, 4, requires_grad=True)

    def block(x: torch.Tensor) -> torch.Tensor:
        return scale_output(layer(x), z, 15).tanh()

    expected = torch.autograd.grad(block(x).sum(), (x, z))
    found = checkpoint(block, x, use_reentrant=reentrant)
    found.sum().backward()
    assert torch.equal(x.grad, expected[0]) and torch.equal(z.grad, expected[1])


@pytest.mark.parametrize("autocast", [False, True])
def test_it_compiles_without_a_graph_break(autocast: bool) -> None:
    def loss(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(**tiny_batch()).loss

    grads = []
    for compiled in (False, True):
        config = PropulsionConfig(target_modules="all-linear", degree=15, init_weights=False)
        torch.manual_seed(1)
        model = get_peft_model(tiny_classifier("roberta"), config)
        torch._dynamo.reset()
        function = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        loss(function).backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain_grad, compiled_grad in zip(*grads, strict=True):
        torch.testing.assert_close(compiled_grad, plain_grad, rtol=1e-2 if autocast else 1e-4, atol=1e-6)
