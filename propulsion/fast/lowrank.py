"""Low-rank additions to a frozen product, as LoRA's: `y + (x A^T) B^T`, with matrices of each run's own.

The runs of a pack go through one batched product on a GPU, where each launch costs, and one after another on a CPU,
where laying the rows out in equal lengths costs more than it saves: batched products took 1.8 to 2.5 times as long
there (minilm shape, rank 16, 4 and 8 runs of 4 and 16 rows, one AMD core, float32). Neither lets a run see another's
numbers, not even one that is not finite.
"""

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
    if _at_once(inner):
        runs = rows.abreast
        low = torch.bmm(runs.gather(x), inner.mT.to(y.dtype))
        runs.scatter(torch.baddbmm(runs.gather(y), low, outer.mT.to(y.dtype)), y)
        return y
    for part, a, b in _by_run(inner, outer, rows):
        y[part].addmm_(x[part] @ a.t().to(y.dtype), b.t().to(y.dtype))
    return y


def low_rank_backward(
    grad: torch.Tensor, x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor, rows: Rows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `x`, A and B from that of `y`."""
    if _at_once(inner):
        return _backward_at_once(grad, x, inner, outer, rows)
    grad_x = torch.empty_like(x)
    grad_inner, grad_outer = torch.empty_like(inner), torch.empty_like(outer)
    for run, (part, a, b) in enumerate(_by_run(inner, outer, rows)):
        between = grad[part] @ b.to(grad.dtype)
        torch.mm(between, a.to(grad.dtype), out=grad_x[part])
        found_inner, found_outer = between.t() @ x[part], grad[part].t() @ (x[part] @ a.t().to(x.dtype))
        (grad_inner if inner.dim() == 2 else grad_inner[run]).copy_(found_inner)
        (grad_outer if outer.dim() == 2 else grad_outer[run]).copy_(found_outer)
    return grad_x, grad_inner, grad_outer


def _at_once(inner: torch.Tensor) -> bool:
    """Whether all runs go through one batched product."""
    return inner.dim() == 3 and inner.device.type != "cpu"


def _backward_at_once(
    grad: torch.Tensor, x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor, rows: Rows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    runs = rows.abreast
    grads, inputs = runs.gather(grad), runs.gather(x)
    between, low = torch.bmm(grads, outer.to(grad.dtype)), torch.bmm(inputs, inner.mT.to(x.dtype))
    if runs.real is not None:  # a padded place shows a token of its run: it counts once
        padding = ~runs.real.unsqueeze(-1)
        between, low = between.masked_fill_(padding, 0), low.masked_fill_(padding, 0)
    grad_x = torch.empty_like(x)
    runs.scatter(torch.bmm(between, inner.to(grad.dtype)), grad_x)
    grad_inner, grad_outer = torch.bmm(between.mT, inputs), torch.bmm(grads.mT, low)
    return grad_x, grad_inner.to(inner.dtype), grad_outer.to(outer.dtype)


def _by_run(inner: torch.Tensor, outer: torch.Tensor, rows: Rows) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows, A and B of each run; all rows where the matrices are everybody's."""
    if inner.dim() == 2:
        yield slice(0, rows.tokens), inner, outer
        return
    for run, part in enumerate(rows.runs()):
        yield part, inner[run], outer[run]
