"""Matrix products with frozen matrices: torch's own, or on a CPU oneDNN's float32, where that is faster.

torch sends float32 products on a CPU to MKL, which is slower on AMD processors than the oneDNN that torch also
carries. The operator behind it is not public, so it is tried out first, and its result compared.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def onednn() -> bool:
    """Whether to use oneDNN: on an AMD processor, where it is there and gives torch's own result to rounding."""
    if not CPUINFO.is_file() or "AuthenticAMD" not in CPUINFO.read_text():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((64, 96), (80, 96), (80,)))
    exact = torch.addmm(bias.double(), x.double(), weight.double().t())
    back = torch.mm(exact.float().double(), weight.double())
    total = torch.randn(64, 96, generator=generator)
    expected = exact, back, exact * bias.double(), back + total.double()
    try:
        found = (
            _onednn(x, weight, bias),
            _onednn(exact.float(), weight.t(), None),
            _onednn(x, weight, bias, "mul", bias.view(1, -1)),
            _onednn(exact.float(), weight.t(), None, "add", total),
        )
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    errors = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    return max(errors) < 1e-5


def _onednn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    then: str = "none",
    other: torch.Tensor | None = None,
) -> torch.Tensor:
    """The product, and what oneDNN does with it before it is written: `add` or `mul` by another tensor."""
    if other is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, then)


def _chosen(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[0] > 1 and onednn()


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """`(x W^T + b) * scale` for `(tokens, in)`, a matrix `(out, in)` and vectors `(out,)`, in the type of `x`."""
    if _chosen(x):
        return _onednn(x, weight, bias) if scale is None else _onednn(x, weight, bias, "mul", scale.view(1, -1))
    y = torch.addmm(bias.to(x.dtype), x, weight.t())
    return y if scale is None else y.mul_(scale)


def back(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`g W`, the gradient of a linear layer's input, in the type of the matrix."""
    grad = grad.to(weight.dtype)
    return _onednn(grad, weight.t(), None) if _chosen(grad) else torch.mm(grad, weight)


def add_back(total: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`total + g W`, in the type of `total`, which may be overwritten."""
    if not grad.dtype == total.dtype == weight.dtype:
        return total.add_(back(grad, weight))
    return _onednn(grad, weight.t(), None, "add", total) if _chosen(grad) else total.addmm_(grad, weight)
