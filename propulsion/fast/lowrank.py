"""Low-rank additions to a frozen product, as LoRA's: `y + (x A^T) B^T`, with matrices of each run's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from propulsion.fast.rows import Rows


def add_low_rank_(
    y: torch.Tensor, x: torch.Tensor, inner: torch.Tensor | None, outer: torch.Tensor | None, rows: Rows
) -> torch.Tensor:
    """`y` `(tokens, out)` plus the low-rank product of `x` `(tokens, in)`, in place and in the type of `y`.

    `inner` is A `(rank, in)`, `outer` is B `(out, rank)`, scaling included; both may have a leading axis of runs.
    """
    if inner is None or outer is None:
        return y
    for part, a, b in _by_run(inner, outer, rows):
        y[part].addmm_(x[part] @ a.t().to(y.dtype), b.t().to(y.dtype))
    return y


def low_rank_backward(
    grad: torch.Tensor, x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor, rows: Rows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `x`, A and B from that of `y`."""
    grad_x = torch.empty_like(x)
    grad_inner, grad_outer = torch.empty_like(inner), torch.empty_like(outer)
    for run, (part, a, b) in enumerate(_by_run(inner, outer, rows)):
        between = grad[part] @ b.to(grad.dtype)
        torch.mm(between, a.to(grad.dtype), out=grad_x[part])
        found_inner, found_outer = between.t() @ x[part], grad[part].t() @ (x[part] @ a.t().to(x.dtype))
        (grad_inner if inner.dim() == 2 else grad_inner[run]).copy_(found_inner)
        (grad_outer if outer.dim() == 2 else grad_outer[run]).copy_(found_outer)
    return grad_x, grad_inner, grad_outer


def _by_run(inner: torch.Tensor, outer: torch.Tensor, rows: Rows) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows, A and B of each run; all rows where the matrices are everybody's."""
    if inner.dim() == 2:
        yield slice(0, rows.tokens), inner, outer
        return
    for run, part in enumerate(rows.runs()):
        yield part, inner[run], outer[run]
