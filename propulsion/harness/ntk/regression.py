"""Kernel regression with a tangent kernel: what the linearised model would predict after training to the end."""

from __future__ import annotations

import torch

RIDGES = tuple(10.0**power for power in range(-6, 3))  # as shares of the kernel's mean diagonal


def predict(gram: torch.Tensor, outputs: int, start: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Predictions for the rows after the first n, from those n with their targets.

    `f(x) = f0(x) + K(x, X) (K(X, X) + ridge)^-1 (targets - f0(X))`: gradient flow on the squared loss of the model
    linearised at its start (Jacot et al. 2018; Lee et al. 2019), with a ridge that is chosen on the n rows alone by
    the squared error of leaving out one row with all its outputs, in closed form.

    Args:
        gram: `(rows * outputs, rows * outputs)`, row after row.
        outputs: of the model.
        start: the model's outputs at its start, `(rows, outputs)`.
        targets: `(n, outputs)`.

    Returns:
        `(rows - n, outputs)`, and the ridge as a share of the mean diagonal.
    """
    size = targets.numel()
    inner, across = gram[:size, :size], gram[size:, :size]
    residual = (targets - start[: len(targets)]).reshape(-1)
    scale = float(inner.diagonal().mean())
    if scale <= 0:
        return start[len(targets) :].clone(), RIDGES[-1]
    ridge = min(RIDGES, key=lambda share: _left_out(inner, share * scale, residual, outputs))
    weights = torch.linalg.solve(inner + ridge * scale * torch.eye(size, dtype=inner.dtype), residual)
    return start[len(targets) :] + (across @ weights).reshape(-1, outputs), ridge


def _left_out(inner: torch.Tensor, ridge: float, residual: torch.Tensor, outputs: int) -> float:
    """The mean squared error of predicting each row from the others."""
    rows = len(inner) // outputs
    inverse = torch.linalg.inv(inner + ridge * torch.eye(len(inner), dtype=inner.dtype))
    own = inverse.reshape(rows, outputs, rows, outputs)[torch.arange(rows), :, torch.arange(rows), :]
    errors = torch.linalg.solve(own, (inverse @ residual).reshape(rows, outputs, 1))
    return float(errors.square().mean())
