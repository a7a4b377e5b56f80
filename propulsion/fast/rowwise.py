"""Scales, biases and layer norms on the rows of a flat `(tokens, width)` matrix; each run's rows by its own vectors."""

from __future__ import annotations

import torch

from propulsion.fast.rows import Rows
from propulsion.fast.workspace import Workspace

aten = torch.ops.aten

PRODUCT_AT_ONCE = 1 << 19  # elements: 2 MB in float32


def scale_(y: torch.Tensor, scale: torch.Tensor | None, rows: Rows) -> torch.Tensor:
    """`y` `(tokens, width)` times a scale, each run's rows times its own, in place."""
    if scale is None:
        return y
    if scale.dim() == 1:
        return y.mul_(scale)
    for run, part in enumerate(rows.runs()):
        y[part].mul_(scale[run])
    return y


def sum_tokens(y: torch.Tensor, like: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The sum over tokens in the shape and type of a vector: over all, or over each run's."""
    if like.dim() == 1:
        return y.sum(0, dtype=like.dtype)
    return torch.stack([y[part].sum(0, dtype=like.dtype) for part in rows.runs()])


def scale_gradient(
    grad: torch.Tensor, scaled: torch.Tensor, scale: torch.Tensor | None, rows: Rows, space: Workspace
) -> torch.Tensor:
    """The gradient of a scale from that of the scaled output and the scaled output itself."""
    assert scale is not None
    if scale.dim() == 1:
        total = _sum_product(grad, scaled, scale, space)
    else:
        parts = [_sum_product(grad[part], scaled[part], scale, space) for part in rows.runs()]
        total = torch.stack(parts)
    return torch.where(scale == 0, 0.0, total / scale)


def _sum_product(grad: torch.Tensor, scaled: torch.Tensor, like: torch.Tensor, space: Workspace) -> torch.Tensor:
    """`(grad * scaled).sum(0)`, in blocks of rows whose product stays in a CPU's cache until it is summed."""
    tokens, width = grad.shape
    step = max(1, PRODUCT_AT_ONCE // width) if grad.device.type == "cpu" else max(1, tokens)
    total = grad.new_zeros(width, dtype=like.dtype)
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        product = space.take("product", grad[part].shape, grad)
        total += torch.mul(grad[part], scaled[part], out=product).sum(0, dtype=like.dtype)
    return total


def normalise(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layer norm without weight and bias: result, mean and 1 / deviation, the last two `(tokens, 1)`."""
    return torch.native_layer_norm(x, x.shape[-1:], None, None, eps)


def normalise_backward(
    grad: torch.Tensor, normal: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    """The gradient of a norm's input from that of `normal * weight + bias`, by its normalised output alone."""
    mean, one = torch.zeros_like(rstd), torch.ones_like(rstd)
    bias = None if weight is None else torch.zeros_like(weight)
    mask = [True, False, False]
    inner, _, _ = aten.native_layer_norm_backward(grad, normal, normal.shape[-1:], mean, one, weight, bias, mask)
    return inner.mul_(rstd)


def affine(
    normal: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows: Rows,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`normal * weight + bias`, in `out` where that is given; the input itself where there is no weight."""
    if weight is None or bias is None:
        return normal
    if bias.dim() == 1:
        return torch.addcmul(bias, normal, weight, out=out)
    parts = rows.runs()
    if out is None:
        return torch.cat([torch.addcmul(bias[run], normal[part], weight) for run, part in enumerate(parts)])
    for run, part in enumerate(parts):
        torch.addcmul(bias[run], normal[part], weight, out=out[part])
    return out


def shift_(y: torch.Tensor, bias: torch.Tensor, rows: Rows) -> torch.Tensor:
    """`y` plus each run's own bias, in place."""
    for run, part in enumerate(rows.runs()):
        y[part].add_(bias[run])
    return y
