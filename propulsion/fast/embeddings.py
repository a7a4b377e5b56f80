"""The frozen embeddings of BERT and RoBERTa as one function that keeps ids and a normalised sum."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from propulsion.fast.layer import Call
from propulsion.fast.rows import Rows
from propulsion.fast.rowwise import affine, normalise, normalise_backward, scale_, scale_gradient, sum_tokens

SITE = 0  # the dropout after the embeddings; layers count from 1


class Embeddings(torch.autograd.Function):
    """Sum of scaled word, token type and position vectors, layer norm, dropout: `(tokens, d)`."""

    @staticmethod
    def forward(
        ctx: Any,
        tables: tuple[torch.Tensor, ...],
        ids: tuple[torch.Tensor, ...],
        weight: torch.Tensor,
        eps: float,
        dropout: float,
        call: Call,
        bias: torch.Tensor,
        *scales: torch.Tensor | None,
    ) -> torch.Tensor:
        """`tables` (entries, d) are read at `ids` (tokens,) and multiplied by `scales` (d,), in this order."""
        total, *others = (scale_(t[i], s, call.rows) for t, i, s in zip(tables, ids, scales, strict=True))
        for other in others:
            total += other
        normal, _, rstd = normalise(total, eps)
        result = affine(normal, weight, bias, call.rows)
        ctx.save_for_backward(normal, rstd, weight, bias, *ids, *scales)
        ctx.tables, ctx.dropout, ctx.call = tables, dropout, call
        kept = _kept(result, dropout, call)
        return result if kept is None else result.mul_(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the norm's bias and of the scales."""
        normal, rstd, weight, bias, *rest = ctx.saved_tensors
        ids, scales = rest[: len(ctx.tables)], rest[len(ctx.tables) :]
        rows: Rows = ctx.call.rows
        kept = _kept(grad, ctx.dropout, ctx.call)
        if kept is not None:
            grad = kept.mul_(grad)
        grad_bias = sum_tokens(grad, bias, rows) if ctx.needs_input_grad[6] else None
        found: list[torch.Tensor | None] = [None] * len(scales)
        if any(ctx.needs_input_grad[7:]):
            grad = normalise_backward(grad, normal, rstd, weight)
            for n, (table, index, scale) in enumerate(zip(ctx.tables, ids, scales, strict=True)):
                if ctx.needs_input_grad[7 + n]:
                    found[n] = scale_gradient(grad, scale_(table[index], scale, rows), scale, rows, ctx.call.space)
        return None, None, None, None, None, None, grad_bias, *found


def _kept(like: torch.Tensor, rate: float, call: Call) -> torch.Tensor | None:
    if call.masks is None or rate == 0:
        return None
    parts = [
        call.masks.keep(rate, (part.stop - part.start, like.shape[-1]), like, (SITE, 0), run)
        for run, part in enumerate(call.rows.runs())
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).mul_(1 / (1 - rate))
